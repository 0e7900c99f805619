// Sorts the tables of marks by a column: once up, once down, then back into groups.
"use strict";
(() => {
  for (const table of document.querySelectorAll("table.matrix")) {
    const bodies = [...table.tBodies];
    const rows = bodies.flatMap((body) => [...body.rows].slice(1).map((row) => ({ row, body })));
    const flat = document.createElement("tbody");
    const heads = [...table.tHead.rows[0].cells];

    const value = (row, i) => {
      const cell = row.cells[i];
      if (heads[i].dataset.sort === "mark") return cell.textContent.trim() ? 0 : 1;
      if (heads[i].dataset.sort === "text") return cell.textContent.trim();
      return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
    };
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    const sort = (i, direction) => {
      for (const body of bodies) body.hidden = direction !== 0;
      if (direction === 0) {
        for (const { row, body } of rows) body.append(row);
        flat.remove();
        return;
      }
      const keyed = rows.map(({ row }) => ({ row, key: value(row, i) }));
      const present = keyed.filter((k) => k.key !== null).sort((a, b) => direction * compare(a.key, b.key));
      flat.append(...present.map((k) => k.row), ...keyed.filter((k) => k.key === null).map((k) => k.row));
      bodies[0].before(flat);
    };

    heads.forEach((head, i) => {
      if (!head.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      const inner = head.querySelector("span") ?? head;
      button.append(...inner.childNodes);
      if (inner === head) head.append(button); else inner.replaceWith(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        for (const other of heads) other.removeAttribute("aria-sort");
        const direction = before === null ? 1 : before === "ascending" ? -1 : 0;
        if (direction) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        sort(i, direction);
      });
    });
  }
})();

"""What each operation of a kernel does to arrays: `table` lists them all."""

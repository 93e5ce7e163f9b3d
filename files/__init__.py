"""Files that are read and written safely, with the standard library alone: every package may import this one."""

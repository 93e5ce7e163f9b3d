"""The machines that we compile for: boards and targets, a file each."""

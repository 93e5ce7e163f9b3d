"""Name and versions of the dialect. Imports nothing."""

DOMAIN = "subbyte"
DOMAIN_VERSION = 1  # raised when the body of a function changes; files of all versions are read
OPSET = 21
IR_VERSION = 10

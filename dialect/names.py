"""Names and versions of the dialect, for whoever writes or reads it. Imports nothing."""

DOMAIN = "subbyte"
DOMAIN_VERSION = 1  # raised when a function gets another body; files of all versions are read
OPSET = 21
IR_VERSION = 10

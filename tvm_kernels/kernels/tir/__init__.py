"""Building blocks of all kernels: parameters, vectors, epilogue, code generator; and the execution of one kernel."""

"""What every kernel is written with: parameters, vectors, the epilogue, the code generator; and running one kernel."""

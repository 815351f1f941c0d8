"""Parameters from and for other libraries."""

"""Exporters, one module per target. Imported as ``snnzoo.export``; the optional libraries are imported by the module
that needs them."""

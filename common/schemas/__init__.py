"""What the files that this project reads back have to say: a schema for each kind, which is checked at the door alone.

No other room handles a KeyError, TypeError or ValueError of metadata. Import the modules with the schemas where they
are needed, inside functions: pydantic takes a while to load.
"""

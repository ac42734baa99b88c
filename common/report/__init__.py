"""Pictures and HTML pages of synthetic sets and runs, and the record of a run folder that they are made from."""

"""The report: one HTML page about the tables of `report.tables`, their runs and their data, which opens offline."""

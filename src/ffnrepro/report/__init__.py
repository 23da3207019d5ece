"""The report: one HTML page about the tables of `report.tables`, their networks and their data. It opens offline."""

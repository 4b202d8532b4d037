"""The report: run folders enter, one self-contained HTML page leaves, or the same page served while a run trains."""

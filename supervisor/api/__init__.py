"""Read models of runs; the HTTP surface comes here."""

"""The programs of the proof that run in containers: standard library only, handed over by `/task`, never imported by the executor."""

"""Stage contracts: what each role is given, may write and owes."""

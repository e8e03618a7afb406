"""The work behind a push: who claims jobs, runs them, gives them back and recovers them, and what each type does."""

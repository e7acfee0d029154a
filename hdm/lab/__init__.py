"""`hdm lab`: compare settings by many short trainings that differ in one setting each."""

"""Many runs of one recipe that differ in a few fields, and what the difference makes."""

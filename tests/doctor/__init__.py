"""The doctor before faults seeded into a real folder, on a machine whose programs are played."""

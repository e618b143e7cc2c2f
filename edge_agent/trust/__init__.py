"""Full verification of what this device should run (Uptane 2.1 on TUF 1.0), and the floor under its clock."""

"""`python -m device_sim`."""

from device_sim.cli import main

main()

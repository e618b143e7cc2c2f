"""What every implementation of a port has to do, whoever uses it. A new implementation or fake joins by one line."""

package identity

// Installation is the public key of the installation's operator: the same for as long as its keys live.
func (id *Identity) Installation() string { return id.pub[operatorKey] }

package certificate

// ParsePair reads a chain and its key from one text.
func ParsePair(b []byte) error {
	_, err := parsePair(b, b)
	return err
}

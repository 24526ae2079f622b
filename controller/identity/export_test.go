package identity

import "time"

// Hashing is how many passwords are being hashed.
func (id *Identity) Hashing() int { return len(id.hashing) }

// ForgetAll is how many revocations there are after what has run out is forgotten.
func ForgetAll(b []byte, now time.Time) (int, error) {
	r, err := parseRevocations(b)
	if err != nil {
		return 0, err
	}
	r.forget(now)
	n := 0
	for _, users := range r {
		n += len(users)
	}
	return n, nil
}

// ParseCA reads the file of authorities, and gives it as it would be written.
func ParseCA(b []byte) ([]byte, error) {
	ca, err := parseCA(b)
	if err != nil {
		return nil, err
	}
	return ca.encode()
}

// ParseHash reads a password's hash, and gives it as it would be written.
func ParseHash(s string) (string, error) {
	h, err := parsePHC(s)
	return h.String(), err
}

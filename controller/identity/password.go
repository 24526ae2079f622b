package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Passwords are hashed by argon2id with the second of the recommended sets of parameters of RFC 9106.
const (
	hashMemory  = 64 << 10 // KiB
	hashTime    = 3
	hashThreads = 4
	hashSalt    = 16
	hashTag     = 32
)

// What a hash from elsewhere may ask for. Its memory is what hashesAtOnce times the largest takes.
const (
	maxHashMemory  = 256 << 10 // KiB
	maxHashTime    = 16
	maxHashThreads = 16
	maxHashBytes   = 64
	maxHashText    = 256

	hashesAtOnce = 2
)

// MaxPassword is how many bytes a password may have.
const MaxPassword = 1024

// errHash never holds a part of the hash.
var errHash = errors.New("check password: the hash is not a PHC string of argon2id with sensible parameters")

// HashPassword gives a password's hash as a PHC string. It takes some 100 ms and 64 MiB, so few run at once; the wait ends
// with ctx.
func (id *Identity) HashPassword(ctx context.Context, plain string) (string, error) {
	if plain == "" || len(plain) > MaxPassword {
		return "", fmt.Errorf("password: must have 1 to %d bytes", MaxPassword)
	}
	h := phc{memory: hashMemory, time: hashTime, threads: hashThreads, salt: make([]byte, hashSalt)}
	if _, err := rand.Read(h.salt); err != nil {
		return "", fmt.Errorf("make salt: %w", err)
	}
	var err error
	if h.tag, err = id.derive(ctx, h, plain, hashTag); err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return h.String(), nil
}

// CheckPassword tells whether a password is the one that a hash was made from. Its parameters are those of the hash.
func (id *Identity) CheckPassword(ctx context.Context, hash, plain string) (bool, error) {
	h, err := parsePHC(hash)
	if err != nil {
		return false, err
	}
	if len(plain) > MaxPassword {
		return false, nil // no such password could be set
	}
	tag, err := id.derive(ctx, h, plain, len(h.tag))
	if err != nil {
		return false, fmt.Errorf("check password: %w", err)
	}
	return subtle.ConstantTimeCompare(tag, h.tag) == 1, nil
}

func (id *Identity) derive(ctx context.Context, h phc, plain string, length int) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case id.hashing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-id.hashing }()
	return argon2.IDKey([]byte(plain), h.salt, h.time, h.memory, h.threads, uint32(length)), nil
}

// phc is a hash with what it was made with.
type phc struct {
	memory, time uint32
	threads      uint8
	salt, tag    []byte
}

// String is the hash in the PHC string format.
func (h phc) String() string {
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.time, h.threads, enc.EncodeToString(h.salt), enc.EncodeToString(h.tag))
}

// parsePHC reads a hash, and refuses one that would cost too much to check or too little to break.
func parsePHC(s string) (phc, error) {
	if len(s) > maxHashText || strings.ContainsAny(s, "\r\n") { // which base64 would skip
		return phc{}, errHash
	}
	p := strings.Split(s, "$")
	if len(p) != 6 || p[0] != "" || p[1] != "argon2id" || p[2] != "v="+strconv.Itoa(argon2.Version) {
		return phc{}, errHash
	}
	var n [3]uint64
	params := strings.Split(p[3], ",")
	if len(params) != len(n) {
		return phc{}, errHash
	}
	for i, c := range []struct {
		name     string
		min, max uint64
	}{{"m=", 8, maxHashMemory}, {"t=", 1, maxHashTime}, {"p=", 1, maxHashThreads}} {
		text, ok := strings.CutPrefix(params[i], c.name)
		v, err := strconv.ParseUint(text, 10, 32)
		if !ok || err != nil || v < c.min || v > c.max || strconv.FormatUint(v, 10) != text {
			return phc{}, errHash
		}
		n[i] = v
	}
	h := phc{memory: uint32(n[0]), time: uint32(n[1]), threads: uint8(n[2])}
	if h.memory < 8*uint32(h.threads) {
		return phc{}, errHash
	}
	var err error
	enc := base64.RawStdEncoding.Strict()
	if h.salt, err = enc.DecodeString(p[4]); err != nil || len(h.salt) < 8 || len(h.salt) > maxHashBytes {
		return phc{}, errHash
	}
	if h.tag, err = enc.DecodeString(p[5]); err != nil || len(h.tag) < 16 || len(h.tag) > maxHashBytes {
		return phc{}, errHash
	}
	return h, nil
}

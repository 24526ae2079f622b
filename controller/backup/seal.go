package backup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
)

// Seal says how backups are encrypted, and how they are opened again.
type Seal struct {
	recipients []age.Recipient
	identities []age.Identity
	plain      bool
}

// ErrSealed says that a backup can't be opened with what there is.
var ErrSealed = errors.New("it is encrypted and the key for it is not here: give the passphrase or the key file that opens it")

// SealConfig is what a Seal is made of: recipients or a passphrase or Plain to write, KeyFile or the passphrase to read.
type SealConfig struct {
	// Recipients are age public keys, "age1...".
	Recipients []string
	// PassphraseFile holds a passphrase in its first line.
	PassphraseFile string
	// KeyFile holds age secret keys, as age-keygen writes them.
	KeyFile string
	// Plain says that backups are not encrypted.
	Plain bool
	// work is the cost of a passphrase as a power of two; 0 for age's own.
	work int
}

// NewSeal reads the keys.
func NewSeal(cfg SealConfig) (*Seal, error) {
	s := &Seal{plain: cfg.Plain}
	for _, r := range cfg.Recipients {
		x, err := age.ParseX25519Recipient(r)
		if err != nil {
			return nil, fmt.Errorf("backup recipient %q: %w (make a pair with age-keygen; the public key starts with age1)", r, err)
		}
		s.recipients = append(s.recipients, x)
	}
	if cfg.PassphraseFile != "" {
		b, err := os.ReadFile(cfg.PassphraseFile)
		if err != nil {
			return nil, fmt.Errorf("backup passphrase: %w", err)
		}
		line, _, _ := strings.Cut(string(b), "\n")
		if line = strings.TrimRight(line, "\r"); len(line) < 8 {
			return nil, fmt.Errorf("backup passphrase: the first line of %s has %d characters, at least 8 are needed", cfg.PassphraseFile, len(line))
		}
		id, err := age.NewScryptIdentity(line)
		if err != nil {
			return nil, fmt.Errorf("backup passphrase: %w", err)
		}
		s.identities = append(s.identities, id)
		if len(s.recipients) == 0 {
			r, err := age.NewScryptRecipient(line)
			if err != nil {
				return nil, fmt.Errorf("backup passphrase: %w", err)
			}
			if cfg.work > 0 {
				r.SetWorkFactor(cfg.work)
			}
			s.recipients = append(s.recipients, r)
		}
	}
	if cfg.KeyFile != "" {
		f, err := os.Open(cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("backup key: %w", err)
		}
		defer f.Close()
		ids, err := age.ParseIdentities(f)
		if err != nil {
			return nil, fmt.Errorf("backup key %s: %w", cfg.KeyFile, err)
		}
		s.identities = append(s.identities, ids...)
	}
	if s.plain && len(s.recipients) > 0 {
		return nil, errors.New("backups can't be both encrypted and unencrypted: choose one")
	}
	return s, nil
}

// Encrypts reports whether it writes encrypted backups.
func (s *Seal) Encrypts() bool { return len(s.recipients) > 0 }

// opener is the flag that opens what it writes.
func (s *Seal) opener() string {
	for _, r := range s.recipients {
		if _, ok := r.(*age.ScryptRecipient); ok {
			return "--backup-passphrase-file FILE"
		}
	}
	return "--backup-key-file FILE"
}

// Writes reports whether it is decided how backups are written.
func (s *Seal) Writes() bool { return s.Encrypts() || s.plain }

// wrap encrypts what is written to it. It must be closed.
func (s *Seal) wrap(w io.Writer) (io.WriteCloser, error) {
	if !s.Encrypts() {
		return nopCloser{w}, nil
	}
	c, err := age.Encrypt(w, s.recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypt backup: %w", err)
	}
	return c, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Open decrypts a backup, if it is encrypted.
func (s *Seal) Open(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	const magic = "age-encryption.org/"
	head, err := b.Peek(len(magic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	if !bytes.Equal(head, []byte(magic)) {
		return b, nil
	}
	if len(s.identities) == 0 {
		return nil, ErrSealed
	}
	out, err := age.Decrypt(b, s.identities...)
	if _, none := errors.AsType[*age.NoIdentityMatchError](err); none {
		return nil, ErrSealed
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt backup: %w", err)
	}
	return out, nil
}

package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// hostKey is the key of a host's agent while its credentials are being made. The file is made before the request, so
// that a host is never added whose credentials could not be kept.
type hostKey struct {
	file    *os.File
	seed    []byte
	written bool
}

// prepareKey makes a key and the file for it, unless the caller has a key already.
func (a *App) prepareKey(c *call) (*hostKey, error) {
	given := c.flags.Changed("public-key")
	switch {
	case given && c.credsOut != "":
		return nil, usage(errors.New("--creds-out: shoalctl can't write credentials for a key that it does not have; leave --public-key out"))
	case given:
		return nil, nil
	case c.credsOut == "":
		return nil, usage(errors.New("--creds-out must be given: the file for the credentials of the host's agent"))
	}
	seed, err := setKey(c)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(c.credsOut, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, usage(fmt.Errorf("--creds-out: %w", err))
	}
	return &hostKey{file: f, seed: seed}, nil
}

// dryKey gives a dry run a key that nobody keeps.
func (a *App) dryKey(c *call) error {
	if c.flags.Changed("public-key") {
		return nil
	}
	_, err := setKey(c)
	return err
}

func setKey(c *call) (seed []byte, err error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	if seed, err = pair.Seed(); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	for _, p := range c.op.Params {
		if p.Name == "public_key" {
			return seed, p.SetText(c.params, public)
		}
	}
	return nil, errors.New("make a key: the operation has no parameter public_key")
}

// write completes the file.
func (k *hostKey) write(token string) error {
	if token == "" {
		return errors.New("the controller's answer holds no credential: repeat it with shoalctl host rekey")
	}
	b, err := jwt.FormatUserConfig(token, k.seed)
	if err != nil {
		return fmt.Errorf("format credentials: %w", err)
	}
	if _, err := k.file.Write(b); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	if err := errors.Join(k.file.Sync(), k.file.Close()); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	k.written = true
	return nil
}

// discard takes a file away that no credentials came to be in.
func (k *hostKey) discard() {
	if k == nil || k.written {
		return
	}
	_ = k.file.Close()
	_ = os.Remove(k.file.Name())
}

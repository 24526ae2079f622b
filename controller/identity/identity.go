package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/nats-io/nkeys"
	"golang.org/x/sys/unix"
)

// Account is one of the installation's NATS accounts.
type Account string

// The accounts.
const (
	SYS    Account = "SYS"    // the server's own: events, account updates
	CTL    Account = "CTL"    // streams and controllers
	AGT    Account = "AGT"    // agents
	USR    Account = "USR"    // people and API clients
	ENROLL Account = "ENROLL" // one-use joiners
)

// Accounts lists the accounts.
func Accounts() []Account { return []Account{SYS, CTL, AGT, USR, ENROLL} }

// Role is what a user is to the installation.
type Role string

// The roles.
const (
	RoleController Role = "controller" // everything in CTL
	RoleSystem     Role = "system"     // everything in SYS
	RoleAgent      Role = "agent"      // subjects.AgentRole
	RoleAdmin      Role = "admin"      // subjects.AdminRole
	RoleViewer     Role = "viewer"     // subjects.ViewerRole
)

// account is the account that a role's users live in; scoped says that a signing key of its own carries the
// role's permissions, otherwise the account's key signs.
func (r Role) account() (a Account, scoped bool, err error) {
	switch r {
	case RoleController:
		return CTL, false, nil
	case RoleSystem:
		return SYS, false, nil
	case RoleAgent:
		return AGT, true, nil
	case RoleAdmin, RoleViewer:
		return USR, true, nil
	default:
		return "", false, fmt.Errorf("role: %q is not one of agent, admin, viewer, controller, system", string(r))
	}
}

// Names of the seed files, without their extension.
const (
	operatorKey = "operator"
	signingKey  = "operator-signing"
	seedExt     = ".seed"
	revokedFile = "revoked.json"
)

func accountKey(a Account) string { return "account-" + strings.ToLower(string(a)) }
func roleKey(r Role) string       { return "role-" + string(r) }

// keyNames are the keys of an installation and how each is made.
func keyNames() map[string]func() (nkeys.KeyPair, error) {
	m := map[string]func() (nkeys.KeyPair, error){operatorKey: nkeys.CreateOperator, signingKey: nkeys.CreateOperator}
	for _, a := range Accounts() {
		m[accountKey(a)] = nkeys.CreateAccount
	}
	for _, r := range []Role{RoleAgent, RoleAdmin, RoleViewer} {
		m[roleKey(r)] = nkeys.CreateAccount
	}
	return m
}

// Identity is the keys of one installation. Its methods may be called at once.
type Identity struct {
	dir  string
	keys map[string]nkeys.KeyPair
	pub  map[string]string

	mu      sync.Mutex
	revoked revocations
}

// Open reads the keys of the installation from dir, and makes them there when dir does not exist yet or is empty.
func Open(dir string) (*Identity, error) {
	dir = filepath.Clean(dir)
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0:
		if err := create(dir); err != nil {
			return nil, fmt.Errorf("create identity %s: %w", dir, err)
		}
	case err != nil:
		return nil, fmt.Errorf("open identity: %w", err)
	}
	id, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("open identity %s: %w", dir, err)
	}
	return id, nil
}

// create makes all keys beside dir and moves them into place in one step, so that there is never half an identity.
func create(dir string) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, ".identity-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for name, generate := range keyNames() {
		k, err := generate()
		if err != nil {
			return fmt.Errorf("make key %s: %w", name, err)
		}
		seed, err := k.Seed()
		if err != nil {
			return fmt.Errorf("make key %s: %w", name, err)
		}
		if err := writeSynced(filepath.Join(tmp, name+seedExt), append(seed, '\n')); err != nil {
			return err
		}
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	// Unlike os.Rename this replaces an empty directory, and fails on one that another controller has just filled.
	if err := unix.Rename(tmp, dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return &os.LinkError{Op: "rename", Old: tmp, New: dir, Err: err}
	}
	return syncDir(parent)
}

func load(dir string) (*Identity, error) {
	id := &Identity{dir: dir, keys: map[string]nkeys.KeyPair{}, pub: map[string]string{}}
	for name := range keyNames() {
		path := filepath.Join(dir, name+seedExt)
		b, err := readPrivate(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing: restore the directory from a backup; a new key would lock out every host and user", path)
		}
		if err != nil {
			return nil, err
		}
		k, err := nkeys.FromSeed(bytes.TrimSpace(b))
		if err != nil {
			return nil, fmt.Errorf("read seed %s: %w", path, err)
		}
		pub, err := k.PublicKey()
		if err != nil {
			return nil, fmt.Errorf("read seed %s: %w", path, err)
		}
		want := byte('A')
		if name == operatorKey || name == signingKey {
			want = 'O'
		}
		if pub[0] != want {
			return nil, fmt.Errorf("read seed %s: holds a key of type %c, want %c", path, pub[0], want)
		}
		id.keys[name], id.pub[name] = k, pub
	}
	var err error
	id.revoked, err = loadRevocations(filepath.Join(dir, revokedFile))
	if err != nil {
		return nil, err
	}
	return id, nil
}

// AccountID is the public key of an account.
func (id *Identity) AccountID(a Account) string { return id.pub[accountKey(a)] }

// readPrivate reads a file that holds a secret, unless others may read it, too.
func readPrivate(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if m := fi.Mode().Perm(); m&0o077 != 0 {
		return nil, fmt.Errorf("%s holds a secret and others may read it (mode %04o): check who did, then chmod 600 it", path, m)
	}
	return os.ReadFile(path)
}

// writeSynced writes a new private file and waits until it is on the disk.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// replacePrivate puts a private file in place in one step.
func replacePrivate(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

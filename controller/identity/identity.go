package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
	"golang.org/x/sys/unix"

	"shoal/controller/file"
)

// Account is one of the installation's NATS accounts.
type Account string

// The accounts.
const (
	SYS    Account = "SYS"    // the server's own: events, account updates
	CTL    Account = "CTL"    // streams and controllers
	AGT    Account = "AGT"    // agents
	USR    Account = "USR"    // people and API clients
	ENROLL Account = "ENROLL" // guests: whoever has no credentials yet
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
	RoleAdmin      Role = "admin"      // subjects.AdminRole, in a credentials file made beside the keys
	RoleViewer     Role = "viewer"     // subjects.ViewerRole, in a credentials file made beside the keys
	RoleInspector  Role = "inspector"  // subjects.InspectorRole in CTL, in a credentials file made beside the keys
	RoleManager    Role = "manager"    // subjects.AdminRole, for a session of somebody in the admin account
	RoleUser       Role = "user"       // subjects.UserRole, for a session of somebody in an ordinary account
	RoleGuest      Role = "guest"      // subjects.GuestRole, for whoever connects without credentials
)

// scopedRoles are the roles whose permissions stand in their account, each with a signing key of its own.
func scopedRoles() []Role {
	return []Role{RoleAgent, RoleAdmin, RoleViewer, RoleInspector, RoleManager, RoleUser, RoleGuest}
}

// account is the account that a role's users live in; scoped says that a signing key of its own carries the
// role's permissions, otherwise the account's key signs.
func (r Role) account() (a Account, scoped bool, err error) {
	switch r {
	case RoleController:
		return CTL, false, nil
	case RoleInspector:
		return CTL, true, nil
	case RoleSystem:
		return SYS, false, nil
	case RoleAgent:
		return AGT, true, nil
	case RoleAdmin, RoleViewer, RoleManager, RoleUser:
		return USR, true, nil
	case RoleGuest:
		return ENROLL, true, nil
	default:
		return "", false, fmt.Errorf("role: %q is not one of agent, admin, viewer, inspector, manager, user, guest, controller, system", string(r))
	}
}

// Names of the seed files, without their extension, and of the other files.
const (
	operatorKey = "operator"
	signingKey  = "operator-signing"
	sealKey     = "seal"
	seedExt     = ".seed"
	revokedFile = "revoked.json"
	layoutFile  = "layout.json"
	caFile      = "ca.pem"
)

func accountKey(a Account) string { return "account-" + strings.ToLower(string(a)) }
func roleKey(r Role) string       { return "role-" + string(r) }

// layout is what a directory of keys says of itself: which files it must have. It is what tells a file that an older
// controller did not know from one that was lost.
type layout struct {
	Version int `json:"version"`
	// Since is the version that the directory was made with.
	Since int `json:"since"`
}

// The versions. A directory of the first has no layout file.
const (
	layoutFirst    = 1
	layoutSessions = 2 // keys of sessions and guests, the sealing key, the certificate authority
	layoutInspect  = 3 // the key of inspectors
	layoutNow      = layoutInspect
)

// keySpec is how a key is made, its type, and since which layout a directory has it.
type keySpec struct {
	generate func() (nkeys.KeyPair, error)
	prefix   byte
	since    int
}

// keySpecs are the keys of an installation.
func keySpecs() map[string]keySpec {
	m := map[string]keySpec{
		operatorKey: {nkeys.CreateOperator, 'O', layoutFirst}, signingKey: {nkeys.CreateOperator, 'O', layoutFirst},
		sealKey: {nkeys.CreateCurveKeys, 'X', layoutSessions},
	}
	for _, a := range Accounts() {
		m[accountKey(a)] = keySpec{nkeys.CreateAccount, 'A', layoutFirst}
	}
	for _, r := range scopedRoles() {
		since := layoutFirst
		switch r {
		case RoleManager, RoleUser, RoleGuest:
			since = layoutSessions
		case RoleInspector:
			since = layoutInspect
		default:
		}
		m[roleKey(r)] = keySpec{nkeys.CreateAccount, 'A', since}
	}
	return m
}

// Identity is the keys of one installation. Its methods may be called at once.
type Identity struct {
	dir    string
	layout layout
	keys   map[string]nkeys.KeyPair
	pub    map[string]string
	// hashing bounds how many passwords are hashed at once.
	hashing chan struct{}
}

// Open reads the keys of the installation from dir, and makes them there when dir does not exist yet or is empty. What an
// older controller has not known is added; what has been lost is not.
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
	if err := upgrade(dir); err != nil {
		return nil, fmt.Errorf("bring identity %s up to date: %w", dir, err)
	}
	id, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("open identity %s: %w", dir, err)
	}
	return id, nil
}

// Check reads the keys in dir as Open would, and makes none. A directory that is not there or is empty is fine.
func Check(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	var l layout
	if err == nil {
		l, err = readLayout(dir)
	}
	if err == nil && l.Version == layoutNow { // of an older one keys may be missing that Open adds
		_, err = load(dir)
	}
	if err != nil {
		return fmt.Errorf("check identity %s: %w", dir, err)
	}
	return nil
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
	if err := fill(tmp, 0); err != nil {
		return err
	}
	if err := writeLayout(tmp, layout{Version: layoutNow, Since: layoutNow}); err != nil {
		return err
	}
	// Unlike os.Rename this replaces an empty directory, and fails on one that another controller has just filled.
	if err := unix.Rename(tmp, dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return &os.LinkError{Op: "rename", Old: tmp, New: dir, Err: err}
	}
	return file.SyncDir(parent)
}

// upgrade adds what came after the layout that a directory has, and then says so. It may be cut off anywhere.
func upgrade(dir string) error {
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := readLayout(dir)
	if err != nil || l.Version == layoutNow {
		return err
	}
	if err := fill(dir, l.Version); err != nil {
		return err
	}
	l.Version = layoutNow
	return writeLayout(dir, l)
}

// fill makes the files that came after a version, but for those that are there already.
func fill(dir string, after int) error {
	write := func(name string, content func() ([]byte, error)) error {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		b, err := content()
		if err != nil {
			return err
		}
		return file.Write(path, 0o600, b)
	}
	for name, spec := range keySpecs() {
		if spec.since <= after {
			continue
		}
		if err := write(name+seedExt, func() ([]byte, error) {
			k, err := spec.generate()
			if err != nil {
				return nil, fmt.Errorf("make key %s: %w", name, err)
			}
			seed, err := k.Seed()
			if err != nil {
				return nil, fmt.Errorf("make key %s: %w", name, err)
			}
			return append(seed, '\n'), nil
		}); err != nil {
			return err
		}
	}
	if after >= layoutSessions {
		return nil
	}
	return write(caFile, func() ([]byte, error) {
		a, err := newAuthority(time.Now())
		if err != nil {
			return nil, err
		}
		return CA{list: []authority{a}}.encode()
	})
}

func readLayout(dir string) (layout, error) {
	path := filepath.Join(dir, layoutFile)
	b, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return layout{Version: layoutFirst, Since: layoutFirst}, nil
	}
	if err != nil {
		return layout{}, err
	}
	var l layout
	if err := json.Unmarshal(b, &l); err != nil {
		return layout{}, fmt.Errorf("read layout %s: %w", path, err)
	}
	if l.Version < layoutFirst || l.Since < layoutFirst || l.Since > l.Version {
		return layout{}, fmt.Errorf("read layout %s: version %d since %d is impossible: restore the directory from a backup", path, l.Version, l.Since)
	}
	if l.Version > layoutNow {
		return layout{}, fmt.Errorf("read layout %s: it has version %d, this controller knows %d: use one that is as new as the one that wrote it", path, l.Version, layoutNow)
	}
	return l, nil
}

func writeLayout(dir string, l layout) error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode layout: %w", err)
	}
	return file.Write(filepath.Join(dir, layoutFile), 0o600, append(b, '\n'))
}

func load(dir string) (*Identity, error) {
	id := &Identity{dir: dir, keys: map[string]nkeys.KeyPair{}, pub: map[string]string{}, hashing: make(chan struct{}, hashesAtOnce)}
	var err error
	if id.layout, err = readLayout(dir); err != nil {
		return nil, err
	}
	for name, spec := range keySpecs() {
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
		if pub[0] != spec.prefix {
			return nil, fmt.Errorf("read seed %s: holds a key of type %c, want %c", path, pub[0], spec.prefix)
		}
		id.keys[name], id.pub[name] = k, pub
	}
	if _, err := id.CA(); err != nil {
		return nil, err
	}
	if _, err := loadRevocations(filepath.Join(dir, revokedFile)); err != nil {
		return nil, err
	}
	return id, nil
}

// AccountID is the public key of an account.
func (id *Identity) AccountID(a Account) string { return id.pub[accountKey(a)] }

// SigningKey is the public key that signs a role's users: the issuer that the server names in Nats-Request-Info. It is empty
// for a role whose account signs.
func (id *Identity) SigningKey(r Role) string { return id.pub[roleKey(r)] }

// lock keeps other processes from changing the directory, until the returned function is called.
func lock(dir string) (func(), error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), d.Close())
	}
	return func() { _ = d.Close() }, nil
}

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

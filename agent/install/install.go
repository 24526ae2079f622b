// Package install is how an agent comes to be a host: it keeps who the host is, lets it be admitted with a join token, and keeps
// its credentials fresh. Nothing of it asks for an open port: the agent dials.
//
// # What it guarantees
//
//   - The host's key is made on the host and never leaves it. It is on the disk, synced, before anything is sent.
//   - Each step of an admission can be cut by a loss of power, and is repeated with the same key and the same token, which the
//     controller takes for the same request. A host is never left with a used token and no way in.
//   - A host is joined once host.creds is there. That is written last, at once, after all that it needs; then the token
//     is overwritten and removed.
//   - A token is shown only to a server that proves to be the one that the token pins (or, without a pin, that the system's
//     authorities vouch for), over TLS 1.3. There is no way around that.
//   - Credentials are replaced only by ones that were read whole and are for this key and host. With a full disk, or a
//     controller that answers nonsense, the old ones stay.
//   - A host whose credentials have expired, or whose clock is wrong, asks as a guest and signs with its key. One that was removed
//     says so, leaves its guests alone, and asks again every few hours.
//   - No error and no log line holds a secret.
//
// # Files
//
// Below the agent's data directory; all are 0600 and the directory is 0700:
//
//	identity/host.seed    the host's key
//	identity/host.creds   credentials as every NATS client takes them: JWT and key
//	identity/host.json    id, name and servers
//	identity/ca.pem       what the servers' certificates must be signed by; absent where the system's authorities do
//	identity/token        the join token, while there is an admission under way
//	identity/name         the name that was asked for with it
//	identity.new/         the same, while a host that has joined joins anew
//	identity.replaced-*/  what it was before
//	identity.lock         locked by the agent that runs, or by the one that joins
//	connection.json       what the running agent last knew of its connection, for people
//
// What the credentials are good for is agent/link's.
package install

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"shoal/agent/host"
	"shoal/desired"
	"shoal/subjects"
)

// The names below a data directory, and in an identity's.
const (
	identityDir = "identity"
	joiningDir  = "identity.new"
	replacedDir = "identity.replaced-"
	lockFile    = "identity.lock"
	givenCA     = "given-ca.pem"

	seedFile  = "host.seed"
	credsFile = "host.creds"
	hostFile  = "host.json"
	caFile    = "ca.pem"
	tokenFile = "token"
	nameFile  = "name"
)

// maxFile is more than any file of an identity has.
const maxFile = 1 << 20

// TokenFile is where an agent that has no identity yet looks for a join token by itself.
func TokenFile(data string) string { return filepath.Join(data, identityDir, tokenFile) }

// ErrNotJoined says that there is no identity.
var ErrNotJoined = errors.New("this host has not joined")

// MakeData makes the agent's directory, if it is not there. Others may go through it and not look into it: DHCP servers, which
// are nobody, get at their files below it. One that is there is the operator's, and stays as it is.
func MakeData(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	err := os.Mkdir(dir, 0o711)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(dir, 0o711) // whatever the umask
	}
	if err == nil {
		err = host.SyncDir(filepath.Dir(dir))
	}
	if err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	return nil
}

// Identity is who a host is: an admitted one's, from Open, or one from files that an administrator brought, from Given. Its
// methods may be called at once; all read the files anew.
type Identity struct {
	creds string
	// ca are the files that servers' certificates may be signed by, together. The last is ours to write.
	ca []string
	// about is host.json; "" where the servers are given.
	about string
	urls  []string
	host  string
	key   string
	// crash, in tests, ends the process's life before a step.
	crash func(step string) error

	mu sync.Mutex // one Take at a time
}

// about is what host.json says.
type about struct {
	Host string   `json:"host"`
	Name string   `json:"name"`
	URLs []string `json:"urls"`
}

func never(string) error { return nil }

// Open opens the identity of a host that has joined; the error is ErrNotJoined where it has not.
func Open(data string) (*Identity, error) {
	dir := filepath.Join(data, identityDir)
	if _, err := os.Lstat(filepath.Join(dir, credsFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotJoined
	} else if err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	return open(dir, never)
}

func open(dir string, crash func(string) error) (*Identity, error) {
	i := &Identity{
		creds: filepath.Join(dir, credsFile), ca: []string{filepath.Join(dir, caFile)}, about: filepath.Join(dir, hostFile), crash: crash,
	}
	err := i.load()
	var a about
	if err == nil {
		a, err = i.read()
	}
	if err == nil && (a.Host != i.host || len(a.URLs) == 0) {
		err = fmt.Errorf("%s is not that of host %s", i.about, i.host)
	}
	if err != nil {
		return nil, fmt.Errorf("open identity: %w; restore %s from a backup, or join anew with shoal-agent join --force", err, dir)
	}
	return i, nil
}

// GivenConfig names what an administrator brought to a host.
type GivenConfig struct {
	// Creds is a credentials file; it is replaced by newer ones.
	Creds string
	// CA is a bundle of certificates, "" for none. It stays as it is; newer certificates are kept in Data and hold beside it.
	CA string
	// URLs are the servers, several separated by commas. They hold whatever the controller says.
	URLs string
	Data string
}

// Given opens the identity in files that were made elsewhere.
func Given(cfg GivenConfig) (*Identity, error) {
	i := &Identity{creds: cfg.Creds, urls: strings.Split(cfg.URLs, ","), crash: never}
	if cfg.CA != "" {
		i.ca = []string{cfg.CA, filepath.Join(cfg.Data, givenCA)}
		if _, err := i.Roots(); err != nil {
			return nil, err
		}
	}
	if err := i.load(); err != nil {
		return nil, err
	}
	return i, nil
}

// load reads the credentials for the first time.
func (i *Identity) load() error {
	claims, _, err := readCreds(i.creds)
	if err != nil {
		return err
	}
	if !subjects.ValidToken(claims.Name) {
		return fmt.Errorf("read credentials %s: the user name %q is not a host id", i.creds, claims.Name)
	}
	i.host, i.key = claims.Name, claims.Subject
	return nil
}

// readCreds reads a credentials file. The signatures are for the server to check.
func readCreds(path string) (*jwt.UserClaims, nkeys.KeyPair, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read credentials: %w", err)
	}
	claims, key, err := parseCreds(b)
	if err != nil {
		return nil, nil, fmt.Errorf("read credentials %s: %w", path, err)
	}
	return claims, key, nil
}

// parseCreds reads the text of a credentials file. What nkeys says of a damaged seed does not hold the seed.
func parseCreds(b []byte) (*jwt.UserClaims, nkeys.KeyPair, error) {
	token, err := jwt.ParseDecoratedJWT(b)
	if err != nil {
		return nil, nil, errors.New("there is no JWT in it")
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return nil, nil, errors.New("the JWT in it is damaged")
	}
	key, err := jwt.ParseDecoratedUserNKey(b)
	if err != nil {
		return nil, nil, errors.New("there is no key in it")
	}
	if public, err := key.PublicKey(); err != nil || public != claims.Subject {
		return nil, nil, errors.New("the key is not the one that the JWT was issued for")
	}
	return claims, key, nil
}

// readFile reads a file of ours, unless it is larger than any of ours can be.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is no regular file, or larger than %d bytes", path, maxFile)
	}
	return os.ReadFile(path)
}

func (i *Identity) read() (about, error) {
	b, err := readFile(i.about)
	if err != nil {
		return about{}, err
	}
	var a about
	if err := json.Unmarshal(b, &a); err != nil {
		return about{}, fmt.Errorf("read %s: %w", i.about, err)
	}
	return a, nil
}

// Host is the host's id.
func (i *Identity) Host() string { return i.host }

// PublicKey is the host's key, "U…".
func (i *Identity) PublicKey() string { return i.key }

// ReleaseKey is the key that signs this host's credentials, and releases of the agent.
func (i *Identity) ReleaseKey() (ed25519.PublicKey, error) {
	claims, key, err := readCreds(i.creds)
	if err != nil {
		return nil, err
	}
	key.Wipe()
	raw, err := nkeys.Decode(nkeys.PrefixByteAccount, []byte(claims.Issuer))
	if err != nil {
		return nil, fmt.Errorf("read credentials %s: who signed them is no account: %w", i.creds, err)
	}
	return raw, nil
}

// Creds is the credentials file, which is replaced at each renewal.
func (i *Identity) Creds() string { return i.creds }

// Name is the host's name when the credentials came, or "" where nobody told.
func (i *Identity) Name() string {
	if i.about == "" {
		return ""
	}
	a, err := i.read()
	if err != nil {
		return ""
	}
	return a.Name
}

// URLs are the servers.
func (i *Identity) URLs() []string {
	if i.about != "" {
		if a, err := i.read(); err == nil {
			return a.URLs
		}
	}
	return slices.Clone(i.urls)
}

// Private reports whether servers must prove themselves by TLS: always for a host that joined, and where a bundle was given.
// Otherwise the servers' URLs say it.
func (i *Identity) Private() bool { return i.about != "" || len(i.ca) > 0 }

// Roots are what the servers' certificates must be signed by; nil stands for the system's authorities.
func (i *Identity) Roots() (*x509.CertPool, error) {
	var pool *x509.CertPool
	for n, path := range i.ca {
		b, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) && n == len(i.ca)-1 {
			continue // the one that we write
		}
		if err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		if pool == nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("read certificates: there is none in %s", path)
		}
	}
	return pool, nil
}

// validity is from when to when the credentials are good; expires is zero for ones that don't.
func (i *Identity) validity() (issued, expires time.Time, err error) {
	claims, _, err := readCreds(i.creds)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	if claims.Expires != 0 {
		expires = time.Unix(claims.Expires, 0).UTC()
	}
	return time.Unix(claims.IssuedAt, 0).UTC(), expires, nil
}

// Expires is when the credentials expire, zero if they don't.
func (i *Identity) Expires() (time.Time, error) {
	_, expires, err := i.validity()
	return expires, err
}

// sign signs with the host's key.
func (i *Identity) sign(what []byte) ([]byte, error) {
	_, key, err := readCreds(i.creds)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	return key.Sign(what)
}

// Take puts newer credentials in the place of the old. Each file is replaced at once, the credentials last, so that whoever
// is cut off asks again. Nothing is written that is there already.
func (i *Identity) Take(c desired.Credentials) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := checkCredentials(c, i.key); err != nil {
		return fmt.Errorf("take credentials: %w", err)
	}
	if c.Host != i.host {
		return fmt.Errorf("take credentials: they are host %s's and this is host %s", c.Host, i.host)
	}
	_, key, err := readCreds(i.creds)
	if err != nil {
		return fmt.Errorf("take credentials: %w", err)
	}
	defer key.Wipe()
	seed, err := key.Seed()
	if err != nil {
		return fmt.Errorf("take credentials: %w", err)
	}
	if err := i.write(c, seed); err != nil {
		return fmt.Errorf("take credentials: %w", err)
	}
	return nil
}

// write puts everything of an identity in place, what makes it one last.
func (i *Identity) write(c desired.Credentials, seed []byte) error {
	if len(i.ca) > 0 {
		if err := i.writeCA(i.ca[len(i.ca)-1], c.CA); err != nil {
			return err
		}
	}
	if i.about != "" {
		a := about{Host: c.Host, Name: c.Name, URLs: c.URLs}
		if len(a.URLs) == 0 {
			a.URLs = i.URLs()
		}
		b, err := json.MarshalIndent(a, "", "  ")
		if err != nil {
			return err
		}
		if err := i.put("servers", i.about, append(b, '\n')); err != nil {
			return err
		}
	}
	b, err := jwt.FormatUserConfig(c.JWT, seed)
	if err != nil {
		return errors.New("the credentials can't be put into a file")
	}
	return i.put("credentials", i.creds, b)
}

// writeCA keeps the bundle. None means that the system's authorities vouch for the servers.
func (i *Identity) writeCA(path, bundle string) error {
	if bundle != "" {
		return i.put("certificates", path, []byte(bundle))
	}
	if err := i.crash("certificates"); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return host.SyncDir(filepath.Dir(path))
}

func (i *Identity) put(step, path string, b []byte) error {
	if old, err := readFile(path); err == nil && string(old) == string(b) {
		return nil
	}
	return put(i.crash, step, path, b)
}

// put replaces a private file at once.
func put(crash func(string) error, step, path string, b []byte) error {
	if err := crash(step); err != nil {
		return err
	}
	return host.WriteFile(path, b, 0o600)
}

// checkCredentials refuses what a host can't live with. Whether the JWT is expired is the server's decision: our clock may be wrong.
func checkCredentials(c desired.Credentials, key string) error {
	claims, err := jwt.DecodeUserClaims(c.JWT)
	switch {
	case err != nil:
		return errors.New("the controller's answer holds no JWT that can be read")
	case claims.Subject != key:
		return errors.New("the controller's answer is for another key than this host's")
	case !subjects.ValidToken(c.Host) || claims.Name != c.Host:
		return fmt.Errorf("the controller's answer is for host %q and its JWT for %q", c.Host, claims.Name)
	case c.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(c.CA)):
		return errors.New("the controller's answer has no certificate where there should be some")
	}
	if len(c.URLs) == 0 {
		return nil
	}
	// The rules for servers are those of a join token.
	if _, err := desired.ParseJoinToken(desired.JoinToken{ID: "x", Secret: "x", URLs: c.URLs}.Text()); err != nil {
		return fmt.Errorf("the controller's answer has servers that can't be dialled: %q", c.URLs)
	}
	return nil
}

package controller

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"shoal/controller/certificate"
	"shoal/controller/identity"
	"shoal/subjects"
)

// MakeCreds writes a credentials file for a person or program: role admin or viewer, with a ttl of 0 for ever. It needs no
// running controller.
func MakeCreds(identityDir, role, name string, ttl time.Duration, path string) error {
	switch identity.Role(role) {
	case identity.RoleAdmin, identity.RoleViewer, identity.RoleInspector:
	default:
		return fmt.Errorf("role: %q is none of admin, viewer, inspector", role)
	}
	if !subjects.ValidToken(name) {
		return fmt.Errorf("name: %q is not 1 to 64 characters of A-Z, a-z, 0-9, _ and -", name)
	}
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("out: %s is there already", path)
	}
	id, err := openExisting(identityDir)
	if err != nil {
		return err
	}
	creds, err := id.Creds(identity.Role(role), name, ttl)
	if err != nil {
		return err
	}
	return creds.WriteFile(path)
}

// externalLife is how long the certificate of an external server is good. It is renewed by hand.
const externalLife = 365 * 24 * time.Hour

// The files that NATSConfig writes for a server.
const (
	serverCert = "server.pem"
	serverKey  = "server.key"
)

// NATSConfig writes certificate and key of an external server that serves this installation into tlsDir, and gives the text
// of its nats-server.conf; the identity is made if it is not there yet. Names are further host names and addresses that
// the server is reached by.
func NATSConfig(identityDir, listen, dir, tlsDir string, names []string) (string, error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	for _, d := range []struct {
		flag string
		dir  *string
	}{{"store", &dir}, {"tls-dir", &tlsDir}} {
		if *d.dir == "" {
			return "", fmt.Errorf("%s: the server's directory must be given", d.flag)
		}
		if *d.dir, err = filepath.Abs(*d.dir); err != nil {
			return "", fmt.Errorf("%s: %w", d.flag, err)
		}
	}
	id, err := identity.Open(identityDir)
	if err != nil {
		return "", err
	}
	if names, err = certificate.Names([]string{host}, names); err != nil {
		return "", err
	}
	ca, err := id.CA()
	if err != nil {
		return "", err
	}
	now := time.Now()
	chain, key, err := ca.Issue(names, now, externalLife)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(tlsDir, 0o750); err != nil {
		return "", fmt.Errorf("tls-dir: %w", err)
	}
	server := identity.ExternalServer{Listen: listen, Dir: dir, Cert: filepath.Join(tlsDir, serverCert), Key: filepath.Join(tlsDir, serverKey)}
	for _, f := range []struct {
		path string
		b    []byte
		mode os.FileMode
	}{{server.Key, key, 0o600}, {server.Cert, chain, 0o644}} {
		if err := certificate.WriteFile(f.path, f.b, f.mode); err != nil {
			return "", fmt.Errorf("tls-dir: %w", err)
		}
	}
	text, err := id.ServerConfig(server)
	if err != nil {
		return "", err
	}
	return text + fmt.Sprintf(`
# The certificate in %s is for %s
# and good until %s. Before that, give the same command again (this text need not be replaced),
# and tell the server to read it: nats-server --signal reload
`, server.Cert, strings.Join(names, ", "), now.Add(externalLife).UTC().Format(time.DateOnly)), nil
}

// CAView is one certificate authority as an operator sees it.
type CAView struct {
	Name, Pin    string
	Active       bool
	Since, Until time.Time
}

// ListCA shows the installation's certificate authorities.
func ListCA(identityDir string) ([]CAView, error) {
	id, err := openExisting(identityDir)
	if err != nil {
		return nil, err
	}
	ca, err := id.CA()
	if err != nil {
		return nil, err
	}
	var out []CAView
	for i, c := range ca.Certificates() {
		out = append(out, CAView{Name: c.Subject.CommonName, Pin: identity.Pin(c), Active: i == 0, Since: c.NotBefore, Until: c.NotAfter})
	}
	return out, nil
}

// ChangeCA takes one step of replacing the certificate authority: "rotate", "activate" or "retire". It gives what the
// operator should know then.
func ChangeCA(identityDir, step string, force bool) (string, error) {
	id, err := openExisting(identityDir)
	if err != nil {
		return "", err
	}
	now := time.Now()
	switch step {
	case "rotate":
		c, err := id.RotateCA(now)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s is to be trusted from now on. Hosts get it with their next renewal, people find it in ca.pem of the controller's data directory.\n"+
			"Go on with shoal-controller ca activate from %s on.", c.Subject.CommonName, now.Add(identity.CASettle).UTC().Format(time.DateOnly)), nil
	case "activate":
		c, err := id.ActivateCA(now, force)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s issues the certificates from now on; running controllers notice it within seconds. Join tokens made before are of no use any more.\n"+
			"An external NATS server needs its certificate made anew: shoal-controller nats-config, then nats-server --signal reload.\n"+
			"Then drop the old authority with shoal-controller ca retire.", c.Subject.CommonName), nil
	case "retire":
		gone, err := id.RetireCA()
		if err != nil {
			return "", err
		}
		var names []string
		for _, c := range gone {
			names = append(names, c.Subject.CommonName)
		}
		return strings.Join(names, ", ") + " is dropped. Hosts cease to trust it with their next renewal.", nil
	default:
		return "", fmt.Errorf("step: %q is not one of rotate, activate, retire", step)
	}
}

// openExisting opens an identity and never makes one: a mistyped directory must not become an installation.
func openExisting(dir string) (*identity.Identity, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return identity.Open(dir)
}

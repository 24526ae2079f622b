package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"shoal/controller/file"
)

const (
	// caLife is how long an authority's certificate is good. It is rotated by hand.
	caLife = 10 * 365 * 24 * time.Hour
	// backdate makes new certificates good for clients whose clocks are late.
	backdate = time.Hour
	// maxAuthorities is how many a bundle may hold: the active one, its successor, and one to spare.
	maxAuthorities = 3
	// maxServerNames is how many names a server's certificate may have.
	maxServerNames = 256
)

// CASettle is how old an authority must be before servers' certificates come from it: by then every host whose credentials
// are still good has renewed them, and got the authority with them.
const CASettle = HostTTL

// authority is one certificate authority with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// CA is the installation's certificate authorities as they were when they were read. The first one issues; all are to be
// trusted.
type CA struct{ list []authority }

// CA reads the certificate authorities.
func (id *Identity) CA() (CA, error) {
	path := filepath.Join(id.dir, caFile)
	b, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return CA{}, fmt.Errorf("%s is missing: restore the directory from a backup; hosts and people would not trust a new authority", path)
	}
	if err != nil {
		return CA{}, err
	}
	ca, err := parseCA(b)
	if err != nil {
		return CA{}, fmt.Errorf("read certificate authority %s: %w", path, err)
	}
	return ca, nil
}

func newAuthority(now time.Time) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, fmt.Errorf("make key of certificate authority: %w", err)
	}
	// Two authorities of one installation must differ in more than their key: some clients look issuers up by name.
	name := make([]byte, 4)
	if _, err := rand.Read(name); err != nil {
		return authority{}, fmt.Errorf("make name of certificate authority: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return authority{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Shoal CA " + hex.EncodeToString(name)},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return authority{}, fmt.Errorf("sign certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return authority{}, fmt.Errorf("read back certificate authority: %w", err)
	}
	return authority{cert, key}, nil
}

func serialNumber() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	b[0] &= 0x7f // positive
	return new(big.Int).SetBytes(b), nil
}

// encode is the file: for each authority its certificate and its key.
func (ca CA) encode() ([]byte, error) {
	var b bytes.Buffer
	for _, a := range ca.list {
		key, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			return nil, fmt.Errorf("encode key of certificate authority: %w", err)
		}
		for _, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: a.cert.Raw}, {Type: "PRIVATE KEY", Bytes: key}} {
			if err := pem.Encode(&b, block); err != nil {
				return nil, fmt.Errorf("encode certificate authority: %w", err)
			}
		}
	}
	return b.Bytes(), nil
}

func parseCA(b []byte) (CA, error) {
	var ca CA
	for {
		var blocks [2]*pem.Block
		for i, typ := range []string{"CERTIFICATE", "PRIVATE KEY"} {
			if blocks[i], b = pem.Decode(b); blocks[i] == nil && i == 0 && len(ca.list) > 0 {
				if len(bytes.TrimSpace(b)) > 0 {
					return CA{}, errors.New("there is something after the last key")
				}
				return ca, nil
			}
			if blocks[i] == nil || blocks[i].Type != typ {
				return CA{}, errors.New("want a certificate and its private key, once or more, in PEM")
			}
		}
		cert, err := x509.ParseCertificate(blocks[0].Bytes)
		if err != nil {
			return CA{}, err
		}
		parsed, err := x509.ParsePKCS8PrivateKey(blocks[1].Bytes)
		if err != nil {
			return CA{}, errors.New("a private key is damaged")
		}
		key, ok := parsed.(*ecdsa.PrivateKey)
		if !ok || !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
			return CA{}, errors.New("a private key does not belong to the certificate before it, or that is no authority's")
		}
		if len(ca.list) == maxAuthorities {
			return CA{}, fmt.Errorf("it holds more than %d authorities", maxAuthorities)
		}
		ca.list = append(ca.list, authority{cert, key})
	}
}

// Bundle is the certificates of all authorities in PEM, the active one's first: what clients must trust.
func (ca CA) Bundle() string {
	var b strings.Builder
	for _, a := range ca.list {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	}
	return b.String()
}

// Active is the certificate of the authority that issues.
func (ca CA) Active() *x509.Certificate { return ca.list[0].cert }

// Certificates are those of all authorities, the active one's first.
func (ca CA) Certificates() []*x509.Certificate {
	var out []*x509.Certificate
	for _, a := range ca.list {
		out = append(out, a.cert)
	}
	return out
}

// Pin is the hex SHA-256 of a certificate's public key (SPKI, DER).
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Issue makes a key and a certificate for a server of these host names and addresses, good until life from now. The chain
// ends with the authority's certificate, which clients that only know its pin need. It is PEM: certificates, then the key.
func (ca CA) Issue(names []string, now time.Time, life time.Duration) (chain, key []byte, err error) {
	if len(names) == 0 || len(names) > maxServerNames {
		return nil, nil, fmt.Errorf("names: a server's certificate has 1 to %d names, not %d", maxServerNames, len(names))
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of server: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, nil, err
	}
	issuer := ca.list[0]
	until := now.Add(life)
	if until.After(issuer.cert.NotAfter) {
		until = issuer.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Shoal server"}, NotBefore: now.Add(-backdate), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, private.Public(), issuer.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate of server: %w", err)
	}
	private8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key of server: %w", err)
	}
	chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.cert.Raw})...)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private8}), nil
}

// RotateCA adds an authority to those that are to be trusted. It does not issue before ActivateCA.
func (id *Identity) RotateCA(now time.Time) (*x509.Certificate, error) {
	var added *x509.Certificate
	err := id.changeCA(func(list []authority) ([]authority, error) {
		if len(list) > 1 {
			return nil, fmt.Errorf("there is a second authority already, %s: activate it, or retire it", list[1].cert.Subject.CommonName)
		}
		// Age tells which is newer, in whole seconds and whatever the clock did since.
		if after := list[0].cert.NotBefore.Add(backdate + time.Second); now.Before(after) {
			now = after
		}
		a, err := newAuthority(now)
		added = a.cert
		return append(list, a), err
	})
	return added, err
}

// ActivateCA makes servers' certificates come from the newest authority. It refuses one that is younger than CASettle
// unless told to force it.
func (id *Identity) ActivateCA(now time.Time, force bool) (*x509.Certificate, error) {
	var active *x509.Certificate
	err := id.changeCA(func(list []authority) ([]authority, error) {
		newest := slices.MaxFunc(list, func(a, b authority) int { return a.cert.NotBefore.Compare(b.cert.NotBefore) })
		active = newest.cert
		if newest.cert == list[0].cert {
			return nil, fmt.Errorf("%s is active already, and there is no newer authority: add one with shoal-controller ca rotate", active.Subject.CommonName)
		}
		if ready := active.NotBefore.Add(backdate + CASettle); now.Before(ready) && !force {
			return nil, fmt.Errorf("%s is too young: hosts get it when they renew their credentials, and only from %s on has every host done so whose credentials "+
				"are still good; others could not connect any more. Wait until then, or give --force", active.Subject.CommonName, ready.UTC().Format(time.RFC3339))
		}
		others := slices.DeleteFunc(list, func(a authority) bool { return a.cert == newest.cert })
		return append([]authority{newest}, others...), nil
	})
	return active, err
}

// RetireCA drops the authorities that do not issue. It gives their certificates.
func (id *Identity) RetireCA() ([]*x509.Certificate, error) {
	var gone []*x509.Certificate
	err := id.changeCA(func(list []authority) ([]authority, error) {
		if len(list) == 1 {
			return nil, fmt.Errorf("%s is the only authority", list[0].cert.Subject.CommonName)
		}
		gone = CA{list: list[1:]}.Certificates()
		return list[:1], nil
	})
	return gone, err
}

// changeCA replaces the file by what change makes of it.
func (id *Identity) changeCA(change func([]authority) ([]authority, error)) error {
	unlock, err := lock(id.dir)
	if err != nil {
		return fmt.Errorf("change certificate authorities: %w", err)
	}
	defer unlock()
	ca, err := id.CA()
	if err != nil {
		return err
	}
	list, err := change(ca.list)
	if err != nil {
		return fmt.Errorf("change certificate authorities: %w", err)
	}
	b, err := CA{list: list}.encode()
	if err != nil {
		return err
	}
	if err := file.Write(filepath.Join(id.dir, caFile), 0o600, b); err != nil {
		return fmt.Errorf("change certificate authorities: %w", err)
	}
	return nil
}

package desired

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// How a host comes in. Whoever has no credentials connects as a guest, and may make a few requests (subjects.Guest). Each
// names a one-time curve key, "X…", and its answer is sealed to that key (nkeys xkv1), since guests share an inbox
// prefix; the answer's header SealedBy has the key that it was sealed by. An error is sealed likewise.

// SealedBy is the header of a sealed answer: the curve key, "X…", of who sealed it.
const SealedBy = "Shoal-Sealed-By"

// EnrolRequest asks that a host be let in. It is repeated with the same key until it is answered with credentials: a repetition
// is the same request. The agent keeps key and token on the disk before it asks for the first time.
type EnrolRequest struct {
	// Token and Secret are those of the join token.
	Token  string `json:"token"`
	Secret string `json:"secret"`
	// PublicKey is the agent's user nkey, "U…", made on the host: it will be the host's identity.
	PublicKey string `json:"public_key"`
	// Name is the name that the host wants, by default its host name.
	Name string `json:"name"`
	// Cluster is the name or id of the cluster that the host insists on; empty for whichever the token is for.
	Cluster string       `json:"cluster,omitempty"`
	Version string       `json:"version"`
	Machine MachineFacts `json:"machine"`
	// Box is the curve key, "X…", that the answer is sealed to.
	Box string `json:"box"`
}

// MachineFacts are what an administrator sees of a machine that asks to be let in. Nothing of it is believed.
type MachineFacts struct {
	Hostname string `json:"hostname,omitempty"`
	// Vendor, Product, Serial and UUID are from DMI.
	Vendor    string   `json:"vendor,omitempty"`
	Product   string   `json:"product,omitempty"`
	Serial    string   `json:"serial,omitempty"`
	UUID      string   `json:"uuid,omitempty"`
	Arch      string   `json:"arch,omitempty"`
	CPUs      int      `json:"cpus,omitempty"`
	MemoryMiB uint64   `json:"memory_mib,omitempty"`
	MACs      []string `json:"macs,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// EnrolState is how far an enrolment is.
type EnrolState string

// The states. A refusal is an error, not a state.
const (
	EnrolApproved EnrolState = "approved" // Credentials are there
	EnrolPending  EnrolState = "pending"  // an administrator must approve: ask again
)

// EnrolReply is the answer to an EnrolRequest.
type EnrolReply struct {
	State EnrolState `json:"state"`
	// RetrySeconds is when to ask again while pending.
	RetrySeconds int          `json:"retry_seconds,omitempty"`
	Credentials  *Credentials `json:"credentials,omitempty"`
}

// Credentials are what a host connects with, beside its key, which nobody else has.
type Credentials struct {
	// Host is the host's id, Name its name.
	Host string `json:"host"`
	Name string `json:"name"`
	// JWT is signed for the host's key and expires.
	JWT     string    `json:"jwt"`
	Expires time.Time `json:"expires"`
	// URLs are the servers, CA the certificates (PEM, one or more) that theirs must be signed by.
	URLs []string `json:"urls,omitempty"`
	CA   string   `json:"ca,omitempty"`
}

// RenewRequest asks for credentials anew. A connected agent makes it as subjects.AgentAPI(host, "renew") and the
// server vouches for it; one whose credentials have expired makes it as a guest and signs it. The answer is Credentials.
type RenewRequest struct {
	Host      string `json:"host"`
	PublicKey string `json:"public_key"`
	// Signature is base64 (standard, padded) of the key's signature of RenewProof. Only guests give it. Answers are of use to
	// the owner of the key only, so it may be replayed.
	Signature string `json:"signature,omitempty"`
	// Box is the curve key that the answer to a guest is sealed to.
	Box string `json:"box,omitempty"`
}

// RenewVerb is the verb of a connected agent's request for new credentials.
const RenewVerb = "renew"

// RenewProof is what a guest signs to show that a host's key is its own.
func RenewProof(host, box string) []byte { return []byte("shoal renew " + host + " " + box) }

// Fingerprint is a public key in a form that people can compare: the first 16 bytes of its SHA-256 in hex, by fours.
func Fingerprint(publicKey string) string {
	sum := sha256.Sum256([]byte(publicKey))
	digits := hex.EncodeToString(sum[:16])
	var groups []string
	for i := 0; i < len(digits); i += 4 {
		groups = append(groups, digits[i:i+4])
	}
	return strings.Join(groups, "-")
}

// JoinToken is what a host needs to ask for admission, in one line of text. It holds a secret.
type JoinToken struct {
	// ID names the token to the controllers, Secret proves it.
	ID, Secret string
	// Pin is the hex SHA-256 of the public key (SPKI, DER) of a certificate in the servers' chain; empty where the servers'
	// certificates are to be checked against the system's authorities.
	Pin string
	// URLs are the servers.
	URLs []string
}

// tokenPrefix begins a join token and says which version it is.
const tokenPrefix = "shoal1"

// MaxJoinToken is how long a token's text may be.
const MaxJoinToken = 4096

// Text is "shoal1.<id>.<secret>.<pin>.<urls>", the last part in unpadded URL-safe base64.
func (t JoinToken) Text() string {
	return strings.Join([]string{tokenPrefix, t.ID, t.Secret, t.Pin, base64.RawURLEncoding.EncodeToString([]byte(strings.Join(t.URLs, ",")))}, ".")
}

// String leaves the secret out.
func (t JoinToken) String() string { return "join token " + t.ID }

// ParseJoinToken reads a token's text; white space around it does not matter. Errors never hold the secret.
func ParseJoinToken(s string) (JoinToken, error) {
	s = strings.TrimSpace(s)
	if len(s) > MaxJoinToken {
		return JoinToken{}, errors.New("parse join token: it is too long")
	}
	p := strings.Split(s, ".")
	if len(p) != 5 || p[0] != tokenPrefix {
		return JoinToken{}, errors.New("parse join token: want shoal1.<id>.<secret>.<pin>.<servers>, as shoalctl host token create prints it; was a part of it lost?")
	}
	t := JoinToken{ID: p[1], Secret: p[2], Pin: p[3]}
	for _, part := range p[1:3] {
		if part == "" || strings.ContainsFunc(part, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return JoinToken{}, errors.New("parse join token: its id or secret is damaged")
		}
	}
	if b, err := hex.DecodeString(t.Pin); err != nil || len(b) != 0 && len(b) != sha256.Size {
		return JoinToken{}, errors.New("parse join token: its pin is not 64 hex digits")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(p[4])
	if err != nil {
		return JoinToken{}, errors.New("parse join token: its list of servers is damaged")
	}
	t.URLs = strings.Split(string(b), ",")
	for _, u := range t.URLs {
		parsed, err := url.Parse(u)
		if err != nil || parsed.Host == "" || parsed.Scheme != "tls" && parsed.Scheme != "nats" || parsed.User != nil {
			return JoinToken{}, fmt.Errorf("parse join token: %q is not the URL of a server, such as tls://10.0.0.1:4222", u)
		}
	}
	return t, nil
}

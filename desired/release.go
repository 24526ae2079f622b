package desired

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// AgentItemID is the id of the one item of kind agent that a host may have.
const AgentItemID = "self"

// MaxRelease is how large the binary of an agent may be.
const MaxRelease = 256 << 20

// Bounds of how long a new agent is on trial.
const (
	MinTrial = 5 * time.Second
	MaxTrial = time.Hour
)

// Agent says which release of the agent a host is to run. Its item has no needs, and nothing needs it: a host whose agent can't be
// replaced goes on with the one that it has.
type Agent struct {
	// Version is what the binary says of itself with --version, Arch the architecture that it is for, GOARCH style.
	Version string `json:"version"`
	Arch    string `json:"arch"`
	// SHA256 is the binary's digest in hex, Bytes its length.
	SHA256 string `json:"sha256"`
	Bytes  uint64 `json:"bytes"`
	// Signature is base64 (standard, padded) of the ed25519 signature of ReleaseProof by the key that signs the credentials of hosts: every
	// host knows it from its own.
	Signature string `json:"signature"`
	// Release is what the controller is asked for to get the binary.
	Release string `json:"release"`
	// TrialSeconds is how long the new agent may take, from each start, to be well.
	TrialSeconds int `json:"trial_seconds"`
	// Try counts how often this host was asked for the same release: a release that was rolled back is tried again when it grows.
	Try int `json:"try,omitempty"`
}

// AgentFacts is what an agent says of its own binary.
type AgentFacts struct {
	// SHA256 is the running binary's digest.
	SHA256 string `json:"sha256"`
	// Trial says that it is not known yet whether it is well.
	Trial bool `json:"trial,omitempty"`
	// RolledBack is the digest of the release that was given up last, Why the reason.
	RolledBack string `json:"rolled_back,omitempty"`
	Why        string `json:"why,omitempty"`
}

// ReleaseProof is what is signed of a release.
func ReleaseProof(version, arch, sha256 string, bytes uint64) []byte {
	return fmt.Appendf(nil, "shoal agent release\n%s\n%s\n%s\n%d\n", version, arch, sha256, bytes)
}

// CheckVersion wants 1 to 64 characters of A-Z a-z 0-9 . _ + - that begin with a letter or digit.
func CheckVersion(s string) error {
	if s == "" || len(s) > 64 || strings.ContainsAny(s[:1], "._+-") || strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._+-", r)
	}) {
		return fmt.Errorf("%q is not 1 to 64 characters of A-Z, a-z, 0-9 and ._+- that begin with a letter or digit", s)
	}
	return nil
}

// CheckSHA256 wants a digest as hashing prints it: 64 lower-case hex digits. It is part of file names.
func CheckSHA256(s string) error {
	if b, err := hex.DecodeString(s); err != nil || len(b) != 32 || strings.ToLower(s) != s {
		return fmt.Errorf("%q is not a SHA-256 in lower-case hex", s)
	}
	return nil
}

// Validate names the first field that is wrong.
func (a *Agent) Validate() error {
	if err := CheckVersion(a.Version); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	if a.Arch == "" {
		return errors.New("arch: must be set")
	}
	if err := CheckSHA256(a.SHA256); err != nil {
		return fmt.Errorf("sha256: %w", err)
	}
	if a.Bytes == 0 || a.Bytes > MaxRelease {
		return fmt.Errorf("bytes: %d is not within 1..%d", a.Bytes, MaxRelease)
	}
	if _, err := a.signature(); err != nil {
		return err
	}
	if a.Release == "" {
		return errors.New("release: must be set")
	}
	if d := time.Duration(a.TrialSeconds) * time.Second; d < MinTrial || d > MaxTrial {
		return fmt.Errorf("trial_seconds: %d is not within %v..%v", a.TrialSeconds, MinTrial, MaxTrial)
	}
	if a.Try < 0 {
		return fmt.Errorf("try: %d is negative", a.Try)
	}
	return nil
}

func (a *Agent) signature() ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(a.Signature)
	if err != nil || len(b) != ed25519.SignatureSize {
		return nil, fmt.Errorf("signature: %q is not an ed25519 signature in base64", a.Signature)
	}
	return b, nil
}

// SignedBy reports whether the release was signed by a key. It says nothing of the binary, whose digest must be compared.
func (a *Agent) SignedBy(key ed25519.PublicKey) bool {
	sig, err := a.signature()
	return err == nil && len(key) == ed25519.PublicKeySize && ed25519.Verify(key, ReleaseProof(a.Version, a.Arch, a.SHA256, a.Bytes), sig)
}

// ReleaseVerb is the verb of an agent's request for a part of a release; see ReleaseRequest.
const ReleaseVerb = "release"

// MaxReleasePart is how many bytes of a release one answer holds at most.
const MaxReleasePart = 512 << 10

// ReleaseRequest asks for the bytes of a release from Offset on. The answer is bytes, at most MaxReleasePart of them and none only at the end.
type ReleaseRequest struct {
	Release string `json:"release"`
	Offset  uint64 `json:"offset"`
}

package desired

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

func signed(t *testing.T, a *Agent) ed25519.PublicKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	a.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(private, ReleaseProof(a.Version, a.Arch, a.SHA256, a.Bytes)))
	return public
}

// TestAgent_SignedBy: a signature holds for what was signed and nothing else.
func TestAgent_SignedBy(t *testing.T) {
	good := *samples()[KindAgent].(*Agent)
	key := signed(t, &good)
	if !good.SignedBy(key) {
		t.Fatal("the signature of a release does not hold")
	}
	other := good
	if signed(t, &other); other.SignedBy(key) {
		t.Error("somebody else's signature holds")
	}
	for name, change := range map[string]func(*Agent){
		"version":   func(a *Agent) { a.Version = "9" },
		"arch":      func(a *Agent) { a.Arch = "arm64" },
		"sha256":    func(a *Agent) { a.SHA256 = strings.Repeat("cd", 32) },
		"bytes":     func(a *Agent) { a.Bytes++ },
		"signature": func(a *Agent) { a.Signature = base64.StdEncoding.EncodeToString(make([]byte, 64)) },
	} {
		bad := good
		change(&bad)
		if bad.SignedBy(key) {
			t.Errorf("the signature holds with another %s", name)
		}
	}
	if good.SignedBy(nil) || good.SignedBy(key[:5]) {
		t.Error("the signature holds for half a key")
	}
}

func TestAgent_Validate(t *testing.T) {
	for want, change := range map[string]func(*Agent){
		"version:":       func(a *Agent) { a.Version = "../1" },
		"arch:":          func(a *Agent) { a.Arch = "" },
		"sha256:":        func(a *Agent) { a.SHA256 = strings.Repeat("AB", 32) },
		"bytes:":         func(a *Agent) { a.Bytes = MaxRelease + 1 },
		"signature:":     func(a *Agent) { a.Signature = "AAAA" },
		"release:":       func(a *Agent) { a.Release = "" },
		"trial_seconds:": func(a *Agent) { a.TrialSeconds = 1 },
		"try:":           func(a *Agent) { a.Try = -1 },
	} {
		a := *samples()[KindAgent].(*Agent)
		change(&a)
		if err := a.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want an error that begins with %s", err, want)
		}
	}
}

// TestDecodeHead_Schema: what an agent of today makes of a document of tomorrow, whatever else is in it.
func TestDecodeHead_Schema(t *testing.T) {
	for _, text := range []string{
		`{"schema":1,"host":"h1","gen":1,"items":{}}`,
		`{"schema":7,"colour":"blue","host":"h1"}`,
	} {
		_, err := DecodeHead([]byte(text))
		if fault, ok := errors.AsType[*Fault](err); !ok || fault.Code != CodeTooNew {
			t.Errorf("%s: %v, want a fault TooNew", text, err)
		}
	}
	// Without a schema it is the first one: all that older controllers have written.
	if _, err := DecodeHead([]byte(`{"host":"h1","gen":1,"items":{"domain.d1":"aa"}}`)); err != nil {
		t.Error(err)
	}
}

// TestDecodeSpec_OlderController: a spec that lacks every field which is optional is one of an older controller, and is whole.
func TestDecodeSpec_OlderController(t *testing.T) {
	a := *samples()[KindAgent].(*Agent)
	it := Item{Kind: KindAgent, ID: AgentItemID, Spec: []byte(`{"version":"1.2.3","arch":"amd64","sha256":"` + a.SHA256 + `","bytes":1,"signature":"` + a.Signature + `","release":"r1","trial_seconds":60}`)}
	if _, err := DecodeSpec[Agent](it); err != nil {
		t.Error(err)
	}
	it.Spec = []byte(strings.Replace(string(it.Spec), `{`, `{"channel":"beta",`, 1))
	_, err := DecodeSpec[Agent](it)
	if fault, ok := errors.AsType[*Fault](err); !ok || fault.Code != CodeTooNew {
		t.Errorf("a field of tomorrow: %v, want a fault TooNew", err)
	}
}

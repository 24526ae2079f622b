package desired

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func example() JoinToken {
	return JoinToken{ID: "k3x9", Secret: "s3cr3t-_", Pin: strings.Repeat("ab", 32), URLs: []string{"tls://10.0.0.1:4222", "tls://[fd00::1]:4222"}}
}

func TestJoinToken_RoundTrip(t *testing.T) {
	noPin := example()
	noPin.Pin = ""
	for _, want := range []JoinToken{example(), noPin} {
		got, err := ParseJoinToken("\n " + want.Text() + " \n")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if strings.Contains(want.String(), want.Secret) {
			t.Errorf("%q shows the secret", want.String())
		}
	}
}

func TestParseJoinToken_Refuses(t *testing.T) {
	whole := example().Text()
	for name, in := range map[string]string{
		"nothing": "", "another version": "shoal2" + whole[6:], "cut off": whole[:len(whole)-9], "a part lost": whole[:strings.LastIndex(whole, ".")],
		"no secret": strings.Replace(whole, ".s3cr3t-_.", "..", 1), "a short pin": strings.Replace(whole, "abab", "", 1), "no hex": strings.Replace(whole, "abab", "xyxy", 1),
		"another scheme": JoinToken{ID: "a", Secret: "b", URLs: []string{"http://10.0.0.1"}}.Text(), "no host": JoinToken{ID: "a", Secret: "b", URLs: []string{"tls://"}}.Text(),
		"a password": JoinToken{ID: "a", Secret: "b", URLs: []string{"tls://u:p@h:1"}}.Text(), "too long": whole + strings.Repeat("A", MaxJoinToken),
	} {
		_, err := ParseJoinToken(in)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: the error %q holds the secret", name, err)
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add(example().Text())
	f.Add("shoal1.a.b..")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseJoinToken(s)
		if err != nil {
			return
		}
		again, err := ParseJoinToken(tok.Text())
		if err != nil {
			t.Fatalf("%q was accepted as %+v, whose own text is refused: %v", s, tok, err)
		}
		if d := cmp.Diff(tok, again); d != "" {
			t.Error(d)
		}
	})
}

func TestFingerprint(t *testing.T) {
	a, b := Fingerprint("UA"), Fingerprint("UB")
	if a == b || len(a) != 39 || strings.Count(a, "-") != 7 {
		t.Errorf("%q and %q", a, b)
	}
}

package xtables_test

import (
	"strings"
	"testing"

	"shoal/agent/xtables"
)

func TestNormal(t *testing.T) {
	for _, same := range [][]string{
		{
			`-p udp -m physdev ! --physdev-in sht+ -m udp --sport 67 --dport 68 -j RETURN`,
			`-p udp -m udp --dport 68 --sport 67 -m physdev  ! --physdev-in sht+ -j RETURN`,
		},
		{`-s ! 52:54:00:00:00:0A -i sht0 -j DROP`, `-i sht0 -s ! 52:54:00:00:00:0a -j DROP`},
		{`-m comment --comment "shoal:1-2" -j RETURN`, `-m comment --comment shoal:1-2 -j RETURN`},
		{`-m comment --comment "a \"b\" c" -j X`, `--comment "a \"b\" c" -j X`},
		{`-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN`, `-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN`},
	} {
		for _, r := range same[1:] {
			if a, b := xtables.Normal(same[0]), xtables.Normal(r); a != b {
				t.Errorf("%q and %q differ: %q, %q", same[0], r, a, b)
			}
		}
	}
	for _, differ := range [][2]string{
		{`-s 10.0.0.1/32 -j DROP`, `! -s 10.0.0.1/32 -j DROP`},
		{`-p tcp --dport 1 -j DROP`, `-p tcp --sport 1 -j DROP`},
		{`-p tcp -j DROP`, `-p tcp`},
		{`-m set --match-set a src`, `-m set --match-set a dst`},
	} {
		if xtables.Normal(differ[0]) == xtables.Normal(differ[1]) {
			t.Errorf("%q and %q are the same", differ[0], differ[1])
		}
	}
}

func TestHooked(t *testing.T) {
	h := xtables.Hook{Chain: "FORWARD", Rule: "-m physdev --physdev-is-bridged -j SHOAL-FWD"}
	for text, want := range map[string]bool{
		"-A FORWARD -m physdev --physdev-is-bridged -j SHOAL-FWD\n-A FORWARD -j DOCKER\n":                                    true,
		"-A FORWARD -j SHOAL-OTHER\n-A FORWARD -m physdev --physdev-is-bridged -j SHOAL-FWD\n":                               true,
		"-A FORWARD -j DOCKER\n-A FORWARD -m physdev --physdev-is-bridged -j SHOAL-FWD\n":                                    false,
		"-A FORWARD -m physdev --physdev-is-bridged -j SHOAL-FWD\n-A FORWARD -m physdev --physdev-is-bridged -j SHOAL-FWD\n": false,
		"-A FORWARD -j DOCKER\n": false,
		"":                       false,
	} {
		table, err := xtables.Parse([]byte("*filter\n:FORWARD ACCEPT [0:0]\n" + text + "COMMIT\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := table.Hooked(h); got != want {
			t.Errorf("hooked %v, want %v:\n%s", got, want, text)
		}
		// A script always ends with the hook in force.
		s := xtables.NewScript(xtables.IPv4, table)
		s.Hook(h)
		if !s.Result().Hooked(h) || s.Empty() != want {
			t.Errorf("after %s it is not hooked:\n%s", s.Text(), text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("*nat\n:A - [0:0]\n*filter\n:FORWARD ACCEPT [1:2]\n:x - [0:0]\n[3:4] -A x -p tcp -m comment --comment \"a b\" -j ACCEPT\nCOMMIT\n"))
	f.Add([]byte("*filter\n-A x ! -s 1 ! ! -j\n"))
	f.Add([]byte("*filter\n-A x -m\n-A  \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := xtables.Parse(b)
		if err != nil {
			return
		}
		for chain, rules := range table {
			if chain == "" || strings.Contains(chain, " ") {
				t.Errorf("chain %q", chain)
			}
			for _, r := range rules {
				xtables.Option(r, "-j")
			}
		}
	})
}

// FuzzNormal: a normal form is one.
func FuzzNormal(f *testing.F) {
	f.Add(`-p udp -m physdev ! --physdev-in sht+ -m udp --sport 67 -j RETURN`)
	f.Fuzz(func(t *testing.T, rule string) {
		if strings.ContainsAny(rule, "\"\\") {
			return // quotes are gone after the first time
		}
		if first := strings.TrimLeft(rule, "! \t"); !strings.HasPrefix(first, "-") || strings.HasPrefix(first, "- ") || first == "-" {
			return // not a rule: it does not start with an option
		}
		once := xtables.Normal(rule)
		if twice := xtables.Normal(once); twice != once {
			t.Errorf("%q becomes %q and then %q", rule, once, twice)
		}
	})
}

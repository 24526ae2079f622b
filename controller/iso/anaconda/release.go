package anaconda

import (
	"fmt"
	"strconv"
	"strings"
)

// Release is a major release of the RHEL family.
type Release int

// Oldest and Newest are the releases with tables.
const (
	Oldest Release = 7
	Newest Release = 10
)

// ParseRelease reads 9, RHEL9, or a version such as 9.4.
func ParseRelease(s string) (Release, error) {
	major, _, _ := strings.Cut(strings.TrimPrefix(strings.ToUpper(s), "RHEL"), ".")
	n, err := strconv.Atoi(major)
	if r := Release(n); err == nil && r >= Oldest && r <= Newest {
		return r, nil
	}
	return 0, fmt.Errorf("%q is not a release of the RHEL family from %d to %d", s, Oldest, Newest)
}

// String is as pykickstart calls it: RHEL9.
func (r Release) String() string { return "RHEL" + strconv.Itoa(int(r)) }

// span says in which releases a word is known. "7-9~10" is known in 7 to 9 and, without effect any more, in 10; empty is all of them.
type span string

func (s span) has(r Release) (known, deprecated bool) {
	if s == "" {
		return true, false
	}
	live, dead, _ := strings.Cut(string(s), "~")
	deprecated = within(dead, r)
	return deprecated || within(live, r), deprecated
}

func within(s string, r Release) bool {
	first, last, ranged := strings.Cut(s, "-")
	if !ranged {
		last = first
	}
	a, err1 := strconv.Atoi(first)
	b, err2 := strconv.Atoi(last)
	return err1 == nil && err2 == nil && Release(a) <= r && r <= Release(b)
}

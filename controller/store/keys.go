package store

import (
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
)

// keyMeaning says which field makes a unique key, and what the key means in words. The keys are those of package
// resource; one that is not known here is shown as it is.
func keyMeaning(key string) (field, what string) {
	sort, rest, _ := strings.Cut(key, "/")
	scope, value, _ := strings.Cut(rest, "/")
	switch sort {
	case "ip":
		if b, err := hex.DecodeString(value); err == nil {
			if a, ok := netip.AddrFromSlice(b); ok {
				return "ip", "address " + a.Unmap().String()
			}
		}
		return "ip", "address " + value
	case "mac":
		return "mac", "MAC " + rest
	case "vni":
		if n, err := strconv.Atoi(value); err == nil {
			return "vni", "VNI " + strconv.Itoa(n)
		}
		return "vni", "VNI " + value
	case "target":
		return "target", "disk name " + value + " in VM " + scope
	case "task":
		return "request_id", "request " + rest
	case "secrule":
		return "group_id", "the same rule"
	case "account":
		return "name", "account name " + strconv.Quote(value)
	case "user", "group", "policy":
		return "name", sort + " name " + strconv.Quote(value)
	case "session", "enrolment":
		return "public_key", "public key " + value
	case "share":
		return "account", "the same share"
	case "host":
		switch scope {
		case "name":
			return "name", "name " + strconv.Quote(value)
		case "key":
			return "public_key", "public key " + value
		}
	}
	return "", "key " + strconv.Quote(key)
}

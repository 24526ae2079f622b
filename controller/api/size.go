package api

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Size is a number of bytes. In JSON it is a number of bytes or a text such as "10GiB"; it is written as a number.
type Size uint64

// units of sizes. Only powers of 1024 have the single letter, as everywhere in virtualization.
func unit(s string) (uint64, bool) {
	switch strings.ToLower(s) {
	case "", "b":
		return 1, true
	case "k", "ki", "kib":
		return 1 << 10, true
	case "m", "mi", "mib":
		return 1 << 20, true
	case "g", "gi", "gib":
		return 1 << 30, true
	case "t", "ti", "tib":
		return 1 << 40, true
	case "kb":
		return 1e3, true
	case "mb":
		return 1e6, true
	case "gb":
		return 1e9, true
	case "tb":
		return 1e12, true
	default:
		return 0, false
	}
}

// ParseSize reads a size: digits, with a fraction if need be, and a unit.
func ParseSize(s string) (Size, error) {
	t := strings.TrimSpace(s)
	end := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		end = len(t)
	}
	number, suffix := t[:end], strings.TrimSpace(t[end:])
	factor, ok := unit(suffix)
	if !ok || number == "" {
		return 0, fmt.Errorf("%q is not a size such as 512MiB, 10GiB or 1.5TiB", s)
	}
	if whole, err := strconv.ParseUint(number, 10, 64); err == nil {
		hi, lo := bits.Mul64(whole, factor)
		if hi != 0 {
			return 0, fmt.Errorf("%q is too large", s)
		}
		return Size(lo), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 512MiB, 10GiB or 1.5TiB", s)
	}
	product := f * float64(factor)
	if product >= 1<<63 {
		return 0, fmt.Errorf("%q is too large", s)
	}
	if product != float64(uint64(product)) {
		return 0, fmt.Errorf("%q is not a whole number of bytes", s)
	}
	return Size(product), nil
}

// UnmarshalJSON reads a number of bytes or a text with a unit.
func (z *Size) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		text = string(b)
		if strings.ContainsAny(text, "{}[]tfn") {
			return fmt.Errorf("must be a number of bytes or a text such as \"10GiB\"")
		}
	}
	v, err := ParseSize(text)
	if err != nil {
		return err
	}
	*z = v
	return nil
}

// UnmarshalText reads what a command line gives.
func (z *Size) UnmarshalText(b []byte) error {
	v, err := ParseSize(string(b))
	if err != nil {
		return err
	}
	*z = v
	return nil
}

// String is the size in the largest binary unit that keeps it exact to a tenth.
func (z Size) String() string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(z), 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0") + units[i]
}

package journal

import (
	"bytes"

	"shoal/controller/resource"
)

// scanChanges reads the changes of a group that is laid out as Encode lays it out, in order. Everything between is skipped without a look;
// encoding/json would check each byte twice, which is most of what reading a long journal takes. Anything that is
// laid out otherwise is not ok, and is left to Decode.
func scanChanges(b []byte) (changes []Change, ok bool) {
	s := scanner{b: b}
	if !s.word(groupHead) {
		return nil, false
	}
	for {
		if !s.word(`{"request":`) || !s.skip() || !s.word(`,"at":`) || !s.skip() {
			return changes, false
		}
		if s.word(`,"changes":[`) {
			for {
				c, fine := s.change()
				if !fine {
					return changes, false
				}
				changes = append(changes, c)
				if !s.word(",") {
					break
				}
			}
			if !s.word("]") {
				return changes, false
			}
		}
		if s.word(`,"error":`) && !s.skip() || s.word(`,"more":`) && !s.skip() || !s.word("}") {
			return changes, false
		}
		if s.word(",") {
			continue
		}
		return changes, string(s.b) == groupTail
	}
}

// scanner walks through JSON that is known to be valid.
type scanner struct{ b []byte }

// word steps over a text, if it is next.
func (s *scanner) word(w string) bool {
	if len(s.b) < len(w) || string(s.b[:len(w)]) != w {
		return false
	}
	s.b = s.b[len(w):]
	return true
}

func (s *scanner) change() (c Change, ok bool) {
	if !s.word(`{"kind":"`) {
		return c, false
	}
	kind, ok := s.token()
	if !ok || !s.word(`,"id":"`) {
		return c, false
	}
	id, ok := s.token()
	if !ok {
		return c, false
	}
	c = Change{Kind: resource.Kind(kind), ID: id}
	if s.word(`,"value":`) {
		from := s.b
		if !s.skip() {
			return c, false
		}
		// Copied, so that one small value does not hold the whole message.
		if v := from[:len(from)-len(s.b)]; string(v) != "null" {
			c.Value = bytes.Clone(v)
		}
	}
	return c, s.word("}") && c.Kind != "" && c.ID != ""
}

// token reads a text without escapes up to its closing quote.
func (s *scanner) token() (string, bool) {
	i := bytes.IndexByte(s.b, '"')
	if i < 0 || bytes.IndexByte(s.b[:i], '\\') >= 0 {
		return "", false
	}
	t := string(s.b[:i])
	s.b = s.b[i+1:]
	return t, true
}

// skip steps over one value.
func (s *scanner) skip() bool {
	depth := 0
	for i := 0; i < len(s.b); i++ {
		switch s.b[i] {
		case '"':
			for i++; i < len(s.b) && s.b[i] != '"'; i++ {
				if s.b[i] == '\\' {
					i++
				}
			}
			if i >= len(s.b) {
				return false
			}
			if depth == 0 {
				s.b = s.b[i+1:]
				return true
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 {
				// The end of what a bare number or word stood in.
				s.b = s.b[i:]
				return i > 0
			}
			if depth == 0 {
				s.b = s.b[i+1:]
				return true
			}
		case ',':
			if depth == 0 {
				s.b = s.b[i:]
				return i > 0
			}
		}
	}
	return false
}

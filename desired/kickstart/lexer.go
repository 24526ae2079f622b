package kickstart

import (
	"errors"
	"strings"
)

// Words splits a line as a shell would: quotes, backslashes, and comments at the beginning of a word.
func Words(line string) ([]string, error) {
	var out []string
	var word strings.Builder
	in := false
	var quote byte
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == '"' && c == '\\' && i+1 < len(line) && (line[i+1] == '"' || line[i+1] == '\\'):
			i++
			word.WriteByte(line[i])
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == '\\' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			in = true
		case c == '\\':
			return nil, errors.New("the line ends with a backslash; kickstart has no continued lines")
		case c == ' ' || c == '\t' || c == '\r':
			if in {
				out = append(out, word.String())
				word.Reset()
				in = false
			}
		case c == '#' && in:
			return nil, errors.New("there is a # inside a word; put the word in quotes, or a space before the #")
		case c == '#':
			return out, nil
		case c < ' ' || c == 0x7f:
			return nil, errors.New("there is a control character in the line")
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

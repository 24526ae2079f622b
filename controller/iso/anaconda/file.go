package anaconda

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"shoal/desired/kickstart"
)

// maxDepth bounds files that include each other.
const maxDepth = 8

// item is a line outside of sections, or a whole section.
type item struct {
	at kickstart.Pos
	// raw is the line as it was written; words is empty for comments and blank lines.
	raw   string
	words []string
	// body are the lines of a section, without its %end.
	body    []string
	section bool
}

// text is the item as kickstart writes it. set must be used to change words.
func (i *item) text() string {
	if !i.section {
		return i.raw + "\n"
	}
	var b strings.Builder
	b.WriteString(i.raw + "\n")
	for _, line := range i.body {
		b.WriteString(line + "\n")
	}
	b.WriteString("%end\n")
	return b.String()
}

// set makes the line say these words.
func (i *item) set(words []string) {
	i.words = words
	quoted := make([]string, len(words))
	for n, w := range words {
		quoted[n] = quote(w)
	}
	i.raw = strings.Join(quoted, " ")
}

// quote makes one word of the language, for our lexer and for Python's shlex alike.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=.,:/+@%*^{}[]()!?|<>;&~$", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// file is a kickstart file with what it includes put into its place.
type file struct {
	src   kickstart.Source
	items []*item
	errs  kickstart.Errors
	notes []kickstart.Note
}

// read takes a file apart. What it includes is taken from src; only a path that is absolute may be missing there, since
// it can be written by %pre or lie on the medium.
func read(src kickstart.Source) *file {
	f := &file{src: src}
	f.lines(src.Name, string(src.Text), 0)
	return f
}

func (f *file) fail(at kickstart.Pos, message, remedy string) {
	f.errs = append(f.errs, &kickstart.Error{At: at, Message: message, Remedy: remedy})
}

func (f *file) note(at kickstart.Pos, text string) {
	f.notes = append(f.notes, kickstart.Note{At: at, Text: text})
}

func (f *file) lines(name, text string, depth int) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		raw := strings.TrimRight(lines[i], " \t\r")
		it := &item{at: kickstart.Pos{File: name, Line: i + 1}, raw: raw}
		head := strings.TrimSpace(raw)
		if head == "" || strings.HasPrefix(head, "#") {
			f.items = append(f.items, it)
			continue
		}
		words, err := kickstart.Words(raw)
		if err != nil {
			f.fail(it.at, err.Error(), "")
			// A section is skipped whole even when its first line is not understood.
			words = strings.Fields(raw)[:1]
		}
		it.words = words
		switch {
		case words[0] == "%include":
			f.include(it, depth)
		case words[0] == "%ksappend":
			f.fail(it.at, "%ksappend: files are not appended from the network", "put the lines into the file")
		case words[0] == "%end":
			f.fail(it.at, "there is no section that %end could close", "")
		case strings.HasPrefix(words[0], "%"):
			it.section = true
			end := i + 1
			for end < len(lines) && strings.TrimSpace(lines[end]) != "%end" {
				end++
			}
			if end == len(lines) {
				f.fail(it.at, "section "+words[0]+" is not closed by %end", "")
				return
			}
			it.body = slices.Clone(lines[i+1 : end])
			i = end
			if err == nil {
				f.items = append(f.items, it)
			}
		case err == nil:
			f.items = append(f.items, it)
		}
	}
}

func (f *file) include(it *item, depth int) {
	if len(it.words) != 2 {
		f.fail(it.at, "%include needs one file", "")
		return
	}
	name := it.words[1]
	if strings.Contains(name, "://") {
		f.fail(it.at, "%include "+name+": files are included from the medium and from what %pre wrote, not from the network", "")
		return
	}
	if depth >= maxDepth {
		f.fail(it.at, "%include "+name+": too many files include each other", "")
		return
	}
	var text []byte
	err := fs.ErrNotExist
	if f.src.Open != nil {
		where := name
		if !path.IsAbs(name) {
			where = path.Join(path.Dir(it.at.File), name)
		}
		text, err = f.src.Open(where)
		name = where
	}
	switch {
	case err == nil:
		f.lines(name, string(text), depth+1)
	case errors.Is(err, fs.ErrNotExist) && path.IsAbs(it.words[1]):
		f.note(it.at, name+" is not there yet; Anaconda looks at it after %pre")
		f.items = append(f.items, it)
	default:
		f.fail(it.at, "%include "+name+": "+err.Error(), "write it in %pre, or put it beside the kickstart file")
	}
}

// String is the whole file.
func (f *file) String() string {
	var b strings.Builder
	for _, it := range f.items {
		b.WriteString(it.text())
	}
	return b.String()
}

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"shoal/controller/api"
)

// Secrets never stand on a command line, where every process of the machine can read them: they are asked for, or read from a file.

// secretFlag declares --<flag>-file of a secret parameter.
func secretFlag(cmd *cobra.Command, c *call, p api.Param) {
	if c.secrets == nil {
		c.secrets = map[string]*string{}
	}
	file := new(string)
	c.secrets[p.Name] = file
	help := p.Help + ": file to read it from, - for standard input"
	if p.Required {
		help += "; it is asked for where not given"
	}
	cmd.Flags().StringVar(file, p.Flag+"-file", "", help)
}

// fillSecrets sets the secret parameters of a call.
func (a *App) fillSecrets(c *call) error {
	for _, p := range c.op.Params {
		file, ok := c.secrets[p.Name]
		if !ok || p.IsSet(c.params) {
			continue
		}
		var secret string
		var err error
		switch {
		case *file != "":
			secret, err = readSecret(*file)
		case p.Required:
			secret, err = a.askNew(p.Help, p.Flag)
		default:
			continue
		}
		if err != nil {
			return err
		}
		if err := p.SetText(c.params, secret); err != nil {
			return err
		}
	}
	return nil
}

// readSecret reads a secret from a file, "-" for standard input: its first line.
func readSecret(file string) (string, error) {
	in := os.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read secret: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, 4096))
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

// interactive reports whether somebody can be asked.
func interactive() bool { return term.IsTerminal(int(os.Stdin.Fd())) }

// ask asks for a secret, which the terminal does not show.
func (a *App) ask(what string) (string, error) {
	a.tell("%s: ", what)
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	a.tell("\n")
	if err != nil {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	return string(b), nil
}

// askNew asks for a new secret twice.
func (a *App) askNew(what, flag string) (string, error) {
	if !interactive() {
		return "", usage(fmt.Errorf("--%s-file must be given where nobody can be asked", flag))
	}
	first, err := a.ask(what)
	if err != nil {
		return "", err
	}
	again, err := a.ask("again")
	if err != nil {
		return "", err
	}
	if first != again {
		return "", usage(errors.New("the two are not the same; nothing was changed"))
	}
	return first, nil
}

package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/spf13/cobra"

	"shoal/controller/api"
	"shoal/controller/file"
	"shoal/controller/resource"
	"shoal/subjects"
)

// loginFlags are those of shoalctl login.
type loginFlags struct{ account, user, passwordFile, newPasswordFile, pin, context string }

func (a *App) loginCommand() *cobra.Command {
	var l loginFlags
	cmd := &cobra.Command{
		Use: "login", Short: "Log in with account, user and password", Args: cobra.NoArgs,
		Long: "login gets a session and keeps its credentials in a context (shoalctl context list), which is used from then on. A session lasts for some time, by default two hours, " +
			"and is renewed by using it; shoalctl logout ends it. The password is asked for, or read from a file.\n\n" +
			"The server must prove who it is: by a certificate that --ca or the system trusts, or one with the pinned key (--pin). Where neither is given and somebody can be asked, " +
			"the pin is shown to be compared with what `shoal-controller ca list` says on the controller's machine.",
		Example: "  shoalctl login --server tls://10.0.0.1:4222 --account admin\n  shoalctl login --account acme --user ann --password-file ann.txt --ca ca.pem",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.login(cmd.Context(), l) },
	}
	f := cmd.Flags()
	f.StringVar(&l.account, "account", "", "account (admin, or that of the context)")
	f.StringVar(&l.user, "user", "", "user of the account; the account itself logs in where not given")
	f.StringVar(&l.passwordFile, "password-file", "", "file to read the password from, - for standard input; it is asked for where not given")
	f.StringVar(&l.newPasswordFile, "new-password-file", "", "file to read a new password from, which takes the present one's place")
	f.StringVar(&l.pin, "pin", "", "hex SHA-256 of the public key of a certificate in the server's chain")
	f.StringVar(&l.context, "name", "", "name of the context to keep the session in (the one in use, or the account's name)")
	return cmd
}

func (a *App) login(ctx context.Context, l loginFlags) error {
	contexts, err := a.loadContexts()
	if err != nil {
		return err
	}
	name := first(l.context, a.contextName, a.Getenv("SHOAL_CONTEXT"), contexts.Current)
	old := contexts.Contexts[name]
	if old.Session == "" && l.context == "" {
		old, name = installation{Server: old.Server, CA: old.CA}, "" // a context with a file of credentials keeps it
	}
	l.account = first(l.account, old.Account, resource.AdminAccount)
	if l.user == "" && l.account == old.Account {
		l.user = old.User
	}
	if name == "" || old.Session != "" && (old.Account != l.account || old.User != l.user) && l.context == "" {
		name = strings.Map(func(r rune) rune {
			if subjects.ValidToken(string(r)) {
				return r
			}
			return '-'
		}, strings.Trim(l.account+"-"+l.user, "-"))
	}
	if !subjects.ValidToken(name) {
		return usage(fmt.Errorf("--name: %q is not 1 to 64 characters of A-Z, a-z, 0-9, _ and -", name))
	}
	cfg := api.LoginConfig{
		Server: first(a.server, a.Getenv("SHOAL_SERVER"), old.Server, DefaultServer), CA: first(a.ca, a.Getenv("SHOAL_CA"), old.CA), Pin: strings.ToLower(l.pin), Timeout: a.timeout,
	}
	if cfg.Pin == "" && cfg.CA == "" && interactive() {
		if cfg.Pin, err = a.trust(ctx, cfg); err != nil {
			return err
		}
	}
	password, err := a.password(l)
	if err != nil {
		return err
	}
	newPassword := ""
	if l.newPasswordFile != "" {
		if newPassword, err = readSecret(l.newPasswordFile); err != nil {
			return err
		}
	}
	session, err := api.LogIn(ctx, cfg, l.account, l.user, password, newPassword)
	if err == nil && session.MustChange {
		a.tell("the password is good for this once: choose a new one\n")
		if newPassword, err = a.askNew("new password", "new-password"); err != nil {
			return err
		}
		session, err = api.LogIn(ctx, cfg, l.account, l.user, password, newPassword)
	}
	if err != nil {
		return err
	}
	return a.keepSession(contexts, name, cfg, l, session)
}

// trust shows the pin of a server that nothing vouches for, and asks whether it is the right one.
func (a *App) trust(ctx context.Context, cfg api.LoginConfig) (string, error) {
	pin, err := api.ServerPin(ctx, cfg.Server, cfg.Timeout)
	if err != nil {
		return "", err
	}
	a.tell("the server at %s presents the key\n  %s\ncompare it with what `shoal-controller ca list` says on the controller's machine. Is it the same? (yes/no) ", cfg.Server, pin)
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "yes" {
		return "", usage(errors.New("the server is not trusted; nothing was sent to it"))
	}
	return pin, nil
}

func (a *App) password(l loginFlags) (string, error) {
	switch {
	case l.passwordFile != "":
		return readSecret(l.passwordFile)
	case !interactive():
		return "", usage(errors.New("--password-file must be given where nobody can be asked"))
	}
	who := l.account
	if l.user != "" {
		who += "/" + l.user
	}
	return a.ask("password of " + who)
}

// keepSession writes credentials and authorities beside the file of contexts, and uses them from now on.
func (a *App) keepSession(contexts contexts, name string, cfg api.LoginConfig, l loginFlags, session api.Login) error {
	dir := filepath.Dir(a.contextsFile())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep session: %w", err)
	}
	to := installation{
		Server: cfg.Server, Creds: filepath.Join(dir, name+".creds"), CA: filepath.Join(dir, name+".pem"),
		Account: l.account, User: l.user, Session: session.Session,
	}
	if err := file.Write(to.Creds, 0o600, session.Creds); err != nil {
		return fmt.Errorf("keep session: %w", err)
	}
	if err := file.Write(to.CA, 0o600, []byte(session.CA)); err != nil {
		return fmt.Errorf("keep session: %w", err)
	}
	contexts.Contexts[name], contexts.Current = to, name
	if err := a.saveContexts(contexts); err != nil {
		return err
	}
	a.tell("logged in as %s until %s; the context is %s\n", session.Name, session.Expires.Local().Format("15:04:05"), name)
	return nil
}

func (a *App) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End the session of the context in use", Args: cobra.NoArgs, Example: "  shoalctl logout",
		Long: "The session's credentials stop working at once, and are removed here. The context stays, so that login knows where.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.logout(cmd.Context()) },
	}
}

func (a *App) logout(ctx context.Context) error {
	contexts, err := a.loadContexts()
	if err != nil {
		return err
	}
	name := first(a.contextName, a.Getenv("SHOAL_CONTEXT"), contexts.Current)
	c, ok := contexts.Contexts[name]
	if !ok || c.Session == "" || c.Creds == "" {
		return usage(errors.New("nobody is logged in here"))
	}
	// Where the controller is not to be had, or has ended the session itself, it is forgotten here all the same.
	ended := a.endSession(ctx, c)
	if err := os.Remove(c.Creds); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove credentials: %w", err)
	}
	session := c.Session
	c.Session, c.Creds = "", ""
	contexts.Contexts[name] = c
	if err := a.saveContexts(contexts); err != nil {
		return err
	}
	if ended != nil && !resource.HasCode(ended, resource.CodeLogin) && !resource.HasCode(ended, resource.CodeForbidden) && !resource.HasCode(ended, resource.CodeNotFound) {
		return fmt.Errorf("the credentials are removed here, but session %s could not be ended: %w", session, ended)
	}
	a.tell("logged out\n")
	return nil
}

func (a *App) endSession(ctx context.Context, c installation) error {
	client, err := api.Dial(ctx, api.ClientConfig{Server: c.Server, Creds: c.Creds, CA: c.CA, Timeout: a.timeout})
	if err != nil {
		return err
	}
	defer client.Close()
	body, err := json.Marshal(map[string]string{"id": c.Session})
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	_, err = client.Call(ctx, a.registry.Find(resource.KindSession, "delete"), body)
	return err
}

// renew makes a session last from now on when half of its time is over. What goes wrong with it shows when the session ends.
func (a *App) renew(ctx context.Context, client *api.Client, to installation) {
	if to.Session == "" {
		return
	}
	b, err := os.ReadFile(to.Creds)
	if err != nil {
		return
	}
	token, err := jwt.ParseDecoratedJWT(b)
	if err != nil {
		return
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil || claims.Expires == 0 {
		return
	}
	issued, expires := time.Unix(claims.IssuedAt, 0), time.Unix(claims.Expires, 0)
	if time.Until(expires) > expires.Sub(issued)/2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	raw, err := client.Call(ctx, a.registry.Find(resource.KindSession, "renew"), nil)
	if err != nil {
		return
	}
	var reply api.Reply
	key, keyErr := jwt.ParseDecoratedUserNKey(b)
	if json.Unmarshal(raw, &reply) != nil || reply.JWT == "" || keyErr != nil {
		return
	}
	seed, err := key.Seed()
	if err != nil {
		return
	}
	if creds, err := jwt.FormatUserConfig(reply.JWT, seed); err == nil {
		_ = file.Write(to.Creds, 0o600, creds)
	}
}

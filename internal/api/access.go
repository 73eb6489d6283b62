package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/cors"
)

// Errors of who may call the service.
var (
	// ErrToken is returned when a token file holds none that can be used.
	ErrToken = errors.New("unusable token file")
	// ErrOrigin is returned for what is no origin of a web page.
	ErrOrigin = errors.New("unusable origin")
)

// minTokenBytes is the shortest token: shorter ones can be guessed.
const minTokenBytes = 16

// ReadToken reads a bearer token: the file's only line, of at least 16 letters,
// digits and the signs that RFC 6750 allows. It returns ErrToken.
func ReadToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrToken, err)
	}
	token := strings.TrimSpace(string(data))
	if len(token) < minTokenBytes {
		return "", fmt.Errorf("%w: %s holds %d characters, at least %d are needed", ErrToken, path, len(token), minTokenBytes)
	}
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
	if i := strings.IndexFunc(token, func(r rune) bool { return !strings.ContainsRune(allowed, r) }); i >= 0 {
		return "", fmt.Errorf("%w: character %d of %s is none of letters, digits and -._~+/=", ErrToken, i+1, path)
	}
	return token, nil
}

// openPaths are answered without a token: those that ask whether the service is
// there. Metrics are not among them: they tell of the work.
var openPaths = []string{pathHealth, pathLive, pathReady, pathInferenceLive, pathInferenceReady}

// authorize lets requests with the token through, and the open paths. Tokens are
// compared by their hashes, so that the time tells neither content nor length.
func (s *Server) authorize(token string) fiber.Handler {
	want := sha256.Sum256([]byte(token))
	return func(c *fiber.Ctx) error {
		if slices.Contains(openPaths, c.Path()) {
			return c.Next()
		}
		scheme, given, _ := strings.Cut(c.Get(fiber.HeaderAuthorization), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(given)))
		if same := subtle.ConstantTimeCompare(want[:], got[:]) == 1; same && strings.EqualFold(scheme, "Bearer") {
			return c.Next()
		}
		c.Set(fiber.HeaderWWWAuthenticate, `Bearer realm="`+ServiceName+`"`)
		return s.refuseUnread(c, errNoToken)
	}
}

// crossOrigin lets pages of those origins read the answers.
func crossOrigin(origins []string) (fiber.Handler, error) {
	for _, o := range origins {
		if o == "*" {
			continue
		}
		u, err := url.Parse(o)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Scheme+"://"+u.Host != o || strings.ContainsAny(o, "*, ") {
			return nil, fmt.Errorf("%w: %q, expected one such as https://example.org, or *", ErrOrigin, o)
		}
	}
	list := strings.Join(origins, ",")
	if slices.Contains(origins, "*") {
		list = "*"
	}
	const day = 24 * 60 * 60
	return cors.New(cors.Config{
		AllowOrigins:  list,
		AllowMethods:  "GET,HEAD,POST,PUT,DELETE",
		AllowHeaders:  strings.Join([]string{fiber.HeaderAuthorization, fiber.HeaderContentType, fiber.HeaderXRequestID, headerBinaryLength}, ","),
		ExposeHeaders: strings.Join([]string{fiber.HeaderXRequestID, fiber.HeaderRetryAfter, headerTrainingEnded, headerTrainingEpochs, headerBinaryLength}, ","),
		MaxAge:        day,
	}), nil
}

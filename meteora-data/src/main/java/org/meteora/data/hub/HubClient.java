package org.meteora.data.hub;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParseException;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.net.URI;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Supplier;
import java.util.regex.Pattern;
import org.meteora.UserException;

/** The Hub's protocol: what a repository holds, and where its files are. */
public record HubClient(HubSettings settings) {
  private static final int LARGEST_PAGE = 64 << 20;
  private static final long LARGEST_FILE = 1L << 45; // 32 TiB
  private static final int MOST_PAGES = 10_000;
  private static final JsonFactory FACTORY = new JsonFactory();
  private static final Pattern NEXT = Pattern.compile("<([^>]*)>\\s*;[^,]*\\brel=\"?next\"?");

  /** A repository pinned to the commit its revision meant, and its files in the server's order. */
  public record Listing(Repository repository, List<HubFile> files) {}

  /**
   * Lists all files with sizes and hashes.
   *
   * @throws UserException when the repository does not exist or is closed to this user, or when the
   *     server cannot be reached or its answer is not a listing
   */
  public Listing list(Repository repository) throws InterruptedException {
    var head = json(repository, repository.revisionAddress(settings.endpoint())).content;
    var commit = head instanceof Map<?, ?> map ? text(map, "sha") : "";
    if (!commit.matches("[0-9a-f]{40}")) {
      throw broken(repository, "no commit");
    }
    var pinned = repository.at(commit);
    var files = new LinkedHashMap<String, HubFile>();
    var pages = new HashSet<URI>();
    var next = Optional.of(pinned.treeAddress(settings.endpoint()));
    while (next.isPresent()) {
      if (!pages.add(next.get())) {
        throw broken(repository, "pages in a circle");
      }
      if (pages.size() > MOST_PAGES) {
        throw broken(repository, "more than " + MOST_PAGES + " pages");
      }
      var page = json(repository, next.get());
      if (!(page.content instanceof List<?> entries)) {
        throw broken(repository, "not a list");
      }
      for (var each : entries) {
        if (each instanceof Map<?, ?> entry && text(entry, "type").equals("file")) {
          var file = file(repository, entry);
          if (files.put(file.path(), file) != null) {
            throw broken(repository, "\"" + file.path() + "\" twice");
          }
        }
      }
      next = page.next;
    }
    for (var path : files.keySet()) {
      for (var suffix : List.of(PartFile.PART, PartFile.JOURNAL)) {
        if (files.containsKey(path + suffix)) {
          throw broken(
              repository, "\"" + path + suffix + "\", a name that downloads use themselves");
        }
      }
    }
    return new Listing(pinned, List.copyOf(files.values()));
  }

  Http http() {
    return new Http(settings);
  }

  private static HubFile file(Repository repository, Map<?, ?> entry) {
    var path = text(entry, "path");
    var lfs = entry.get("lfs") instanceof Map<?, ?> map ? map : null;
    var hash = text(lfs != null ? lfs : entry, "oid");
    hash = hash.startsWith("sha256:") ? hash.substring(7) : hash;
    var number = (lfs != null && lfs.containsKey("size") ? lfs : entry).get("size");
    long size =
        number instanceof Integer || number instanceof Long ? ((Number) number).longValue() : -1;
    if (size < 0 || size > LARGEST_FILE) {
      throw broken(repository, "no size of \"" + path + "\"");
    }
    if (!hash.matches(lfs != null ? "[0-9a-f]{64}" : "[0-9a-f]{40}")) {
      throw broken(repository, "no hash of \"" + path + "\"");
    }
    return new HubFile(path, size, hash);
  }

  private static String text(Map<?, ?> object, String name) {
    return object.get(name) instanceof String text ? text : "";
  }

  private static UserException broken(Repository repository, String what) {
    return new UserException(
        "the listing of the %s is not one that can be used: it has %s"
            .formatted(repository, what.replaceAll("\\p{Cntrl}", "?")));
  }

  private record Page(Object content, Optional<URI> next) {}

  private Page json(Repository repository, URI address) throws InterruptedException {
    var retry = new Retry(settings.timing(), "the listing of the " + repository);
    while (true) {
      try {
        var page = new AtomicReference<Page>();
        http()
            .get(
                address,
                Map.of("Accept", "application/json"),
                (reply, body) -> {
                  var json = body.readNBytes(LARGEST_PAGE + 1);
                  if (json.length > LARGEST_PAGE) {
                    throw new IOException("a listing's page of more than 64 MiB");
                  }
                  page.set(new Page(parse(json), nextPage(repository, reply)));
                });
        return page.get();
      } catch (StatusException e) {
        if (!e.mayPass()) {
          throw explain(repository, e);
        }
        retry.pause(e);
      } catch (JsonProcessingException | IllegalArgumentException e) {
        retry.pause(new IOException("the server's answer is no JSON: " + Retry.reason(e), e));
      } catch (IOException e) {
        retry.pause(e);
      }
    }
  }

  /**
   * The address of the next page at the endpoint. A mirror passes on what the Hub says, which is an
   * address at the Hub: of it counts what is asked for, not whom.
   */
  private Optional<URI> nextPage(Repository repository, Http.Reply reply) {
    var next = NEXT.matcher(reply.header("Link").orElse(""));
    if (!next.find()) {
      return Optional.empty();
    }
    var link = next.group(1);
    Supplier<UserException> refusal =
        () -> broken(repository, "a next page that is not one: " + link);
    var to = Http.address(reply.address(), link).orElseThrow(refusal);
    var path = to.getRawPath();
    var prefix = settings.endpoint().getRawPath();
    if (http().isEndpoint(to) && path.startsWith(prefix)) {
      path = path.substring(prefix.length());
    }
    int asked = path.indexOf("/api/");
    if (asked < 0 || to.getRawQuery() == null) {
      throw refusal.get();
    }
    return Optional.of(
        URI.create(settings.endpoint() + path.substring(asked) + "?" + to.getRawQuery()));
  }

  /**
   * JSON as maps, lists, strings and numbers. The stream parser alone, because Jackson's mapper
   * takes a quarter of a second to get ready, which is a sixth of what a file of a GiB may take.
   */
  private static Object parse(byte[] json) throws IOException {
    try (var parser = FACTORY.createParser(json)) {
      parser.nextToken();
      var content = value(parser);
      if (parser.nextToken() != null) {
        throw new JsonParseException(parser, "something follows it");
      }
      return content;
    }
  }

  private static Object value(JsonParser parser) throws IOException {
    return switch (parser.currentToken()) {
      case START_OBJECT -> {
        var object = new HashMap<String, Object>();
        while (parser.nextToken() != JsonToken.END_OBJECT) {
          var name = parser.currentName();
          parser.nextToken();
          object.put(name, value(parser));
        }
        yield object;
      }
      case START_ARRAY -> {
        var list = new ArrayList<>();
        while (parser.nextToken() != JsonToken.END_ARRAY) {
          list.add(value(parser));
        }
        yield list;
      }
      case VALUE_NUMBER_INT -> parser.getNumberValue();
      case null -> throw new JsonParseException(parser, "it is empty");
      case VALUE_STRING -> parser.getText();
      default -> false; // nothing else is of use here: truth values, null, broken numbers
    };
  }

  /** One line that says what is wrong with a refused request, and what to do. */
  UserException explain(Repository repository, StatusException refusal) {
    var page = repository.page(settings.endpoint());
    boolean token = settings.token().isPresent();
    int status = refusal.status();
    if (status == 403 || status == 401 && refusal.code().equals("GatedRepo")) {
      return new UserException(
          "the %s is gated: accept its conditions at %s%s",
          repository,
          page,
          token
              ? " with the account your token belongs to, and see that the token may read gated"
                  + " repositories"
              : " and set HF_TOKEN to a token of your account",
          refusal);
    }
    if (status == 401) {
      return new UserException(
          token
              ? "the Hub refuses the token for the %s: check HF_TOKEN, and that %s exists and is"
                  + " open to your account"
              : "the %s does not exist, is private or is gated: look at %s and set HF_TOKEN to a"
                  + " token of your account",
          repository,
          page,
          refusal);
    }
    if (status == 404 && refusal.code().equals("RevisionNotFound")) {
      return new UserException(
          "the %s has no revision %s: %s", repository, repository.revision(), page, refusal);
    }
    if (status == 404) {
      boolean model = repository.type() == Repository.Type.MODEL;
      return new UserException(
          "no %s at %s; for a %s give --type %s",
          repository, page, model ? "data set" : "model", model ? "dataset" : "model", refusal);
    }
    return new UserException("the " + repository + ": " + refusal.getMessage(), refusal);
  }
}

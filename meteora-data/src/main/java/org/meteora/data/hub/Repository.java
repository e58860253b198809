package org.meteora.data.hub;

import java.net.URI;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.stream.Collectors;
import org.meteora.UserException;

/**
 * A repository on the Hub at a revision.
 *
 * @param id {@code org/name}, or a bare name for the few old ones that have no owner
 * @param revision a branch, tag or commit
 */
public record Repository(Type type, String id, String revision) {
  /** What kind of repository: they live under different addresses. */
  public enum Type {
    MODEL,
    DATASET
  }

  public Repository {
    if (!id.matches("[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?") || id.matches("(.*/)?\\.\\.?(/.*)?")) {
      throw new UserException("not a repository's name (ORG/NAME): " + id);
    }
    if (revision.isBlank()) {
      throw new UserException("the revision of " + id + " is empty; the usual one is main");
    }
  }

  /** The same repository at a commit. */
  public Repository at(String commit) {
    return new Repository(type, id, commit);
  }

  /** Where people see it. */
  public String page(URI endpoint) {
    return endpoint + (type == Type.DATASET ? "/datasets/" : "/") + id;
  }

  URI revisionAddress(URI endpoint) {
    return URI.create(api(endpoint) + "/revision/" + encode(revision));
  }

  URI treeAddress(URI endpoint) {
    return URI.create(api(endpoint) + "/tree/" + encode(revision) + "?recursive=true");
  }

  URI fileAddress(URI endpoint, String path) {
    var encoded =
        Arrays.stream(path.split("/")).map(Repository::encode).collect(Collectors.joining("/"));
    return URI.create(page(endpoint) + "/resolve/" + encode(revision) + "/" + encoded);
  }

  /** The folder's name in the Python client's cache. */
  String cacheFolder() {
    return (type == Type.DATASET ? "datasets" : "models") + "--" + id.replace("/", "--");
  }

  private String api(URI endpoint) {
    return endpoint + (type == Type.DATASET ? "/api/datasets/" : "/api/models/") + id;
  }

  private static String encode(String part) {
    return URLEncoder.encode(part, StandardCharsets.UTF_8).replace("+", "%20");
  }

  @Override
  public String toString() {
    return (type == Type.DATASET ? "data set " : "model ") + id;
  }
}

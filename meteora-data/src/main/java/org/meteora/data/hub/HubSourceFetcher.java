package org.meteora.data.hub;

import java.io.IOException;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.data.source.SourceFetcher;
import org.meteora.data.tasks.Task;

/**
 * Fetches the sources of tasks from the Hub: the Parquet files of the task's configuration, laid
 * flat into the folder where they are looked for.
 */
public final class HubSourceFetcher implements SourceFetcher {
  private final HubClient hub;
  private final Map<Repository, HubClient.Listing> listings = new HashMap<>();
  private boolean unreachable;

  public HubSourceFetcher(HubClient hub) {
    this.hub = hub;
  }

  /** A fetcher with this process's environment, which is looked at when it is first needed. */
  public static SourceFetcher fromEnvironment() {
    return new SourceFetcher() {
      private HubSourceFetcher fetcher;

      @Override
      public synchronized boolean fetch(Task task, Path folder) {
        if (fetcher == null) {
          fetcher = new HubSourceFetcher(new HubClient(HubSettings.fromEnvironment()));
        }
        return fetcher.fetch(task, folder);
      }
    };
  }

  @Override
  public synchronized boolean fetch(Task task, Path folder) {
    var repository = new Repository(Repository.Type.DATASET, task.source().repository(), "main");
    try {
      var listing = listings.get(repository);
      if (listing == null) {
        listing = list(repository);
        listings.put(repository, listing);
      }
      new HubDownloader(hub)
          .download(
              listing,
              task.source().files(),
              folder,
              path -> path.substring(path.lastIndexOf('/') + 1));
      return true;
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new UserException("interrupted while fetching " + repository, e);
    }
  }

  /** Where nobody has answered the other tasks' sources are not asked for, minutes each. */
  private HubClient.Listing list(Repository repository) throws InterruptedException {
    if (unreachable) {
      throw new UserException("not fetched, since the Hub did not answer before");
    }
    try {
      return hub.list(repository);
    } catch (UserException e) {
      unreachable =
          e.getCause() instanceof IOException && !(e.getCause() instanceof StatusException);
      throw e;
    }
  }
}

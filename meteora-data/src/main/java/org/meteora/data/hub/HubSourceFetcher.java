package org.meteora.data.hub;

import java.io.IOException;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.function.Supplier;
import org.meteora.UserException;
import org.meteora.data.source.SourceFetcher;
import org.meteora.data.tasks.Task;

/**
 * Fetches the sources of tasks from the Hub: the Parquet files of the task's configuration, laid
 * flat into the folder where they are looked for.
 */
public final class HubSourceFetcher implements SourceFetcher {
  private final Supplier<HubClient> hub;
  private final Map<Repository, HubClient.Listing> listings = new HashMap<>();
  private boolean unreachable;

  /** The Hub is looked at when it is needed. */
  public HubSourceFetcher(Supplier<HubClient> hub) {
    this.hub = hub;
  }

  /** A fetcher with this process's environment. */
  public HubSourceFetcher() {
    this(() -> new HubClient(HubSettings.fromEnvironment()));
  }

  @Override
  public void fetch(Task task, Path folder) {
    var repository = new Repository(Repository.Type.DATASET, task.source().repository(), "main");
    try {
      var listing = listings.get(repository);
      if (listing == null) {
        listing = list(repository);
        listings.put(repository, listing);
      }
      new HubDownloader(hub.get())
          .download(
              listing,
              task.source().files(),
              folder,
              path -> path.substring(path.lastIndexOf('/') + 1));
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
      return hub.get().list(repository);
    } catch (UserException e) {
      unreachable =
          e.getCause() instanceof IOException && !(e.getCause() instanceof StatusException);
      throw e;
    }
  }
}
